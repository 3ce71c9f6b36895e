"""Run directories that no training made."""

from __future__ import annotations

import pathlib
from typing import Any

import jax.numpy as jnp
import ml_collections

from archirf_jax.contracts import Network, Params, TrainState
from archirf_jax.errors import UserError
from archirf_jax.files import check_run_directory
from archirf_jax.launch import config as configuration
from archirf_jax.training.checkpoints import Checkpoints

NETWORK = "network"


def write(workdir: pathlib.Path, config: dict[str, Any], params: dict[str, Params], step: int) -> None:
    """Make a run directory whose average "ema" is these parameters: all that `sample` and `evaluate` read of one.

    Args:
        workdir: made, with its parents.
        config: of the run, resolved.
        params: float32 arrays, by module.
        step: of the checkpoint.

    Raises:
        UserError: the directory cannot be written.
    """
    check_run_directory(workdir, "workdir")
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError("workdir", str(workdir), f"cannot be a run directory: {e.strerror}") from e
    network = Network(params={}, averages={"ema": params}, opt=())
    checkpoints = Checkpoints(workdir / "checkpoints", keep=1)
    try:
        checkpoints.save(TrainState(step=jnp.int32(step), networks={NETWORK: network}), config)
        checkpoints.wait()
    finally:
        checkpoints.close()
    configuration.save(ml_collections.ConfigDict(config), workdir)
