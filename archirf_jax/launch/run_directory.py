"""Run directories that no training made."""

from __future__ import annotations

import pathlib
from typing import Any

import jax.numpy as jnp
import ml_collections

from archirf_jax.errors import UserError
from archirf_jax.launch import config as configuration
from archirf_jax.training.checkpoints import Checkpoints
from archirf_jax.training.state import TrainState


def write(workdir: pathlib.Path, config: dict[str, Any], params: Any, step: int) -> None:
    """Make a run directory whose averages are these parameters: all that `sample` and `evaluate` read of one.

    Args:
        workdir: made, with its parents.
        config: of the run, resolved.
        params: float32 arrays.
        step: of the checkpoint.

    Raises:
        UserError: the directory cannot be written.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"--workdir: {str(workdir)!r} cannot be a run directory: {e.strerror}") from e
    checkpoints = Checkpoints(workdir / "checkpoints", keep=1)
    try:
        checkpoints.save(TrainState(step=jnp.int32(step), params={}, ema=params, opt=()), config)
        checkpoints.wait()
    finally:
        checkpoints.close()
    configuration.save(ml_collections.ConfigDict(config), workdir)
