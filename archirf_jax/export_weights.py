"""python -m archirf_jax.export_weights --workdir=runs/dit-xl-2 --out=dit.safetensors

A run's EMA weights under the names of the published implementation.
"""

from __future__ import annotations

import pathlib

from absl import flags, logging

from archirf_jax.errors import UserError
from archirf_jax.interop import files
from archirf_jax.launch import cli
from archirf_jax.launch import config as configuration
from archirf_jax.tasks.published import export
from archirf_jax.training.checkpoints import Checkpoints

WORKDIR = flags.DEFINE_string("workdir", None, "run directory", required=True)
OUT = flags.DEFINE_string("out", "weights.safetensors", ".safetensors file to write")
STEP = flags.DEFINE_integer("step", None, "checkpoint to use; default: the newest")


def main(argv: list[str]) -> None:
    """Restore, rename, write."""
    del argv
    out = pathlib.Path(OUT.value).expanduser()
    if out.suffix != ".safetensors":
        raise UserError(f"--out: {str(out)!r} must end in .safetensors")
    workdir = pathlib.Path(WORKDIR.value).expanduser()
    config = configuration.load(workdir)
    step, state = export(config, Checkpoints(workdir / "checkpoints"), STEP.value)
    files.write(state, out)
    logging.info("%d tensors of step %d in %s", len(state), step, out)


if __name__ == "__main__":
    cli.run(main)
