"""python -m archirf_jax.main --config=configs/dit_rf.py --workdir=runs/dit_rf

Train what the configuration describes; the same command goes on where it stopped.
"""

from __future__ import annotations

if __name__ == "__main__":  # the imports below take a tenth of a second, in which a signal may come already
    from archirf_jax.launch.signals import leave_at_once

    leave_at_once(resumable=True)

import pathlib
import types
from typing import Any

from archirf_jax.launch.cli import Command, command_line
from archirf_jax.launch.distributed import FLAGS
from archirf_jax.launch.flags import CONFIG, WORKDIR, Flag
from archirf_jax.launch.signals import RESUME

COMMAND = Command(
    __doc__,
    CONFIG,
    WORKDIR,
    Flag("init_from", "run whose weights the training begins with: --config.init_from", pathlib.Path),
    Flag("profile", "record what the devices do in these steps, such as 100..110"),
    Flag("change_config", "go on with a run though it began with another configuration", bool, False),
    Flag("replay", "run the step again at which the run was stopped, layer by layer", bool, False),
    *FLAGS,
    resumable=True,
    device=False,
)


def main(args: types.SimpleNamespace) -> int:
    """Check, open the data and train, or look at the step that a run was stopped at."""
    from archirf_jax.data.pipeline import load
    from archirf_jax.launch import afterwards, distributed, fields, training
    from archirf_jax.training.profiling import Profile, parse

    if args.init_from is not None:
        args.config.init_from = str(args.init_from)
    fields.check(args.config)
    profile = Profile(args.workdir, parse(args.profile) if args.profile else None)
    if args.replay:
        afterwards.replay(args.workdir)
        return 0
    distributed.start(args.coordinator, args.processes, args.process)
    dataset, again = load(args.config.data), command_line()
    options: dict[str, Any] = dict(again=again, change_config=args.change_config, profile=profile, hard_exit=True)
    if not training.train_run(args.config, dataset, args.workdir, **options):
        return RESUME
    afterwards.say_what_was_made(args.workdir)
    return 0


if __name__ == "__main__":
    COMMAND.run(main)
