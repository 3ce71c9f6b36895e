"""python -m archirf_jax.export_weights --workdir=runs/dit-xl-2 --out=dit.safetensors

A run's averaged weights under the names of the published implementation; of a run that came from the folder of a whole
pipeline, and --out without .safetensors, that folder.
"""

from __future__ import annotations

import pathlib
import types

from archirf_jax.errors import UserError
from archirf_jax.launch.cli import Command
from archirf_jax.launch.flags import WORKDIR, Flag

COMMAND = Command(
    __doc__,
    WORKDIR,
    Flag("out", ".safetensors file to write, or folder of a whole pipeline", pathlib.Path, "weights.safetensors"),
    Flag("step", "checkpoint to use; default: the newest", int),
)


def main(args: types.SimpleNamespace) -> None:
    """Restore, rename, write."""
    from absl import logging

    from archirf_jax.files import check_output
    from archirf_jax.interop import files
    from archirf_jax.launch import published_systems
    from archirf_jax.launch.runs import open_run
    from archirf_jax.tasks.published import export

    run = open_run(args.workdir, args.step)
    if args.out.suffix != ".safetensors" and published_systems.is_system(run):
        total = published_systems.write_back(run, args.out)
        logging.info("%d tensors of the whole pipeline in %s", total, args.out)
        return
    if args.out.suffix != ".safetensors":
        raise UserError("out", str(args.out), "must end in .safetensors")
    state = export(run.config, run.task, run.params)
    check_output(args.out, "out", ".safetensors")
    files.write(state, args.out)
    logging.info("%d tensors of step %d in %s", len(state), run.step, args.out)


if __name__ == "__main__":
    COMMAND.run(main)
