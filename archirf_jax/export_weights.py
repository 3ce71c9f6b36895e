"""python -m archirf_jax.export_weights --workdir=runs/dit-xl-2 --out=dit.safetensors

A run's EMA weights under the names of the published implementation.
"""

from __future__ import annotations

import pathlib

import jax
import numpy as np
from absl import flags, logging

from archirf_jax import registry, tasks
from archirf_jax.errors import UserError
from archirf_jax.interop import files, sources
from archirf_jax.interop.weights import to_state
from archirf_jax.launch import cli
from archirf_jax.launch import config as configuration
from archirf_jax.training.checkpoints import Checkpoints

WORKDIR = flags.DEFINE_string("workdir", None, "run directory", required=True)
OUT = flags.DEFINE_string("out", "weights.safetensors", ".safetensors file to write")
STEP = flags.DEFINE_integer("step", None, "checkpoint to use; default: the newest")


def export(workdir: pathlib.Path, step: int | None = None) -> tuple[int, dict[str, np.ndarray]]:
    """(step, published tensors by name) of a run.

    Raises:
        UserError: no such run or checkpoint, or a network that the published implementation does not have.
    """
    config = configuration.load(workdir)
    if config.model.name not in sources.MODELS:
        raise UserError(f"--workdir: nobody published a {config.model.name}")
    imported = config.get("imported", {})
    source = sources.SOURCES[imported.get("source", sources.MODELS[config.model.name])]
    task = registry.build(tasks, "config.task", config.task, {"config": config})
    like = jax.eval_shape(task.init_params, jax.random.key(0))
    step, params = Checkpoints(workdir / "checkpoints").restore_ema(like, step)
    state = to_state(jax.tree.map(np.asarray, params), source.rename(task.model, config.data.image_size))
    constants = source.constants(task.model, config.data.image_size)
    kept = imported.get("constants", list(constants))
    state |= {name: value for name, value in constants.items() if name in kept}
    prefix = imported.get("prefix", "")
    return step, {f"{prefix}{name}": value for name, value in state.items()}


def main(argv: list[str]) -> None:
    """Restore, rename, write."""
    del argv
    out = pathlib.Path(OUT.value).expanduser()
    if out.suffix != ".safetensors":
        raise UserError(f"--out: {str(out)!r} must end in .safetensors")
    step, state = export(pathlib.Path(WORKDIR.value).expanduser(), STEP.value)
    files.write(state, out)
    logging.info("%d tensors of step %d in %s", len(state), step, out)


if __name__ == "__main__":
    cli.run(main)
