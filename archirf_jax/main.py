"""python -m archirf_jax.main --config=configs/dit_rf.py --workdir=runs/dit_rf

Train what the configuration describes; the same command goes on where it stopped. Flags only, no logic.
"""

from __future__ import annotations

import pathlib

from absl import flags, logging
from ml_collections import config_flags

from archirf_jax import registry, tasks
from archirf_jax.data.pipeline import load, make_feed
from archirf_jax.errors import UserError
from archirf_jax.launch import cli
from archirf_jax.launch import config as configuration
from archirf_jax.tasks.building import resolve_class_embeddings
from archirf_jax.training.loop import train

CONFIG = config_flags.DEFINE_config_file(
    "config", help_string="configs/NAME.py or configs/NAME.py:VARIANT", lock_config=True
)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "run directory: configuration, checkpoints, metrics, pictures", required=True
)
flags.mark_flag_as_required("config")


def main(argv: list[str]) -> None:
    """Check, open the data, claim the run directory, train."""
    del argv
    if not WORKDIR.value:
        raise UserError("--workdir: is empty; give a directory, such as --workdir=runs/dit_rf")
    config, workdir = CONFIG.value, pathlib.Path(WORKDIR.value).expanduser()
    configuration.check(config)
    dataset = load(config.data)
    configuration.resolve_classes(config, len(dataset.source.class_names))
    resolve_class_embeddings(config)
    task = registry.build(tasks, "config.task", config.task, {"config": config})
    feed = make_feed(dataset, config)
    configuration.claim(config, workdir)
    if train(task, feed, config, workdir, again=cli.command_line()):
        made = [
            *sorted((workdir / "samples").glob("*.png"))[-1:],
            *(workdir / name for name in ("progress.gif", "denoising.gif", "loss.png")),
        ]
        logging.info("done; look at %s", ", ".join(map(str, made)))
        logging.info("next: python -m archirf_jax.sample %s --out=samples.png", task.use.format(workdir=workdir))


if __name__ == "__main__":
    cli.run(main)
