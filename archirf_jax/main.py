"""python -m archirf_jax.main --config=configs/dit_rf.py --workdir=runs/dit_rf

Train what the configuration describes; the same command goes on where it stopped. Flags only, no logic.
"""

from __future__ import annotations

import contextlib
import pathlib
from typing import Any

import jax
from absl import flags, logging
from ml_collections import config_flags

from archirf_jax import registry, tasks
from archirf_jax.data.pipeline import Batch, load, make_feed
from archirf_jax.errors import UserError
from archirf_jax.launch import cli, distributed
from archirf_jax.launch import config as configuration
from archirf_jax.tasks.building import resolve_class_embeddings
from archirf_jax.training import replay
from archirf_jax.training.checkpoints import Checkpoints
from archirf_jax.training.loop import train
from archirf_jax.training.preemption import leaving_at_once
from archirf_jax.training.profiling import Profile, parse

CONFIG = config_flags.DEFINE_config_file(
    "config", help_string="configs/NAME.py or configs/NAME.py:VARIANT", lock_config=True
)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "run directory: configuration, checkpoints, metrics, pictures", required=True
)
PROFILE = flags.DEFINE_string("profile", None, "record what the devices do in these steps, such as 100..110")
CHANGE_CONFIG = flags.DEFINE_bool("change_config", False, "go on with a run though it began with another configuration")
REPLAY = flags.DEFINE_bool("replay", False, "run the step again at which the run was stopped, layer by layer")
flags.mark_flag_as_required("config")
RESUME = 75  # exit code of a run that was asked to stop and can go on (EX_TEMPFAIL)


def main(argv: list[str]) -> int:
    """Check, then train, or look at the step that a run was stopped at."""
    del argv
    if not WORKDIR.value:
        raise UserError("--workdir: is empty; give a directory, such as --workdir=runs/dit_rf")
    config, workdir = CONFIG.value, pathlib.Path(WORKDIR.value).expanduser()
    configuration.check(config)
    profile = Profile(workdir, parse(PROFILE.value) if PROFILE.value else None)
    if REPLAY.value:
        return look_at(workdir)
    with leaving_at_once(RESUME):
        return run(config, workdir, profile)


def run(config: Any, workdir: pathlib.Path, profile: Profile) -> int:
    """Join other processes, open the data, claim the run directory, train."""
    distributed.start()
    dataset = load(config.data)
    configuration.resolve_classes(config, len(dataset.source.class_names))
    resolve_class_embeddings(config)
    task = registry.build(tasks, "config.task", config.task, {"config": config})
    feed = make_feed(dataset, config)
    like = jax.eval_shape(task.init, jax.random.key(0))  # what does not fit is known before a directory is claimed
    if CHANGE_CONFIG.value:
        Checkpoints(workdir / "checkpoints").check_fits(like)
    first = jax.process_index() == 0
    with configuration.claimed(config, workdir, CHANGE_CONFIG.value) if first else contextlib.nullcontext():
        if not train(task, feed, config, workdir, again=cli.command_line(), profile=profile):
            return RESUME
    made = [
        *sorted((workdir / "samples").glob("*.png"))[-1:],
        *(workdir / name for name in ("progress.gif", "denoising.gif", "loss.png")),
    ]
    logging.info("done; look at %s", ", ".join(map(str, made)))
    logging.info("next: python -m archirf_jax.sample %s --out=samples.png", task.use.format(workdir=workdir))
    return 0


def look_at(workdir: pathlib.Path) -> int:
    """Run the step again that the run was stopped at."""
    config = configuration.load(workdir)
    task = registry.build(tasks, "config.task", config.task, {"config": config})
    conclusion = replay.replay(task, config, workdir, Batch)
    replay.tell(workdir)
    logging.info("%s", conclusion)
    return 0


if __name__ == "__main__":
    cli.run(main)
