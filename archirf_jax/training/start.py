"""How a run starts: from its newest checkpoint, or anew where nothing would be lost by that."""

from __future__ import annotations

import dataclasses
import pathlib

import jax
from absl import logging
from clu import parameter_overview
from jax.sharding import Mesh

from archirf_jax import sharding
from archirf_jax.contracts import Frozen, Task, TrainState
from archirf_jax.errors import UserError
from archirf_jax.training.checkpoints import Checkpoints
from archirf_jax.training.state import purpose_key
from archirf_jax.training.step_runner import ordered
from archirf_jax.training.writers import METRICS, read_metrics


def start(
    task: Task, seed: int, frozen: Frozen, checkpoints: Checkpoints, mesh: Mesh, workdir: pathlib.Path
) -> TrainState:
    """The state of the newest checkpoint, or a fresh one, placed on the mesh.

    Raises:
        UserError: the checkpoint is of another training, or the run has come further than its checkpoints.
    """

    def init(frozen: Frozen) -> TrainState:
        return task.init(purpose_key(seed, "init"), frozen)

    like = ordered(task, sharding.shaped(jax.eval_shape(init, frozen), mesh))
    state = checkpoints.restore(like)
    if state is not None:
        logging.info("going on from the checkpoint of step %d", int(state.step))
        return dataclasses.replace(state, step=jax.device_put(state.step, sharding.whole(mesh)))
    _check_new(workdir)
    places = jax.tree.map(lambda leaf: leaf.sharding, like)
    state = jax.jit(init, out_shardings=places)(frozen)
    params = {name: network.params for name, network in like.networks.items()}
    shown = params if len(params) > 1 else next(iter(params.values()))
    logging.info("%s", parameter_overview.get_parameter_overview(shown, include_stats=False))
    return ordered(task, state)


def _check_new(workdir: pathlib.Path) -> None:
    """Raise a UserError where a run has left more than its start, and no checkpoint to go on from."""
    rows = [METRICS] if any(row["step"] > 0 for row in read_metrics(workdir)) else []
    folders = [name for name in ("samples", "damaged") if any((workdir / name).glob("*"))]
    if sharding.anywhere(bool(rows + folders)):
        found = ", ".join(rows + folders) or "its files"
        raise UserError(
            f"{str(workdir)!r} has {found}, but no whole checkpoint to go on from; bring its checkpoints back "
            f"(is a disk not mounted?), or move {found} away to begin anew on purpose"
        )
