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
from archirf_jax.files import atomic_write
from archirf_jax.training import tracing
from archirf_jax.training.checkpoints import Checkpoints
from archirf_jax.training.initial_weights import Weights, begin
from archirf_jax.training.state import purpose_key
from archirf_jax.training.step_runner import ordered

MARK = "checkpointed"  # a file of the run directory, from the first whole checkpoint on


def start(
    task: Task,
    seed: int,
    frozen: Frozen,
    checkpoints: Checkpoints,
    mesh: Mesh,
    workdir: pathlib.Path,
    weights: Weights | None = None,
) -> TrainState:
    """The state of the newest checkpoint, or a fresh one, placed on the mesh.

    Args:
        task: what is trained.
        seed: of the run.
        frozen: parameters of the frozen runs by name.
        checkpoints: of the run.
        mesh: where the state comes to lie.
        workdir: the run directory.
        weights: that the main network begins with; what it does not hold is drawn.

    Raises:
        UserError: the checkpoint is of another training, or the run has come further than its checkpoints.
    """
    like = ordered(task, sharding.shaped(tracing.init_shapes(task, frozen), mesh))
    state = checkpoints.restore(like)
    if state is not None:
        logging.info("going on from the checkpoint of step %d", int(state.step))
        return dataclasses.replace(state, step=jax.device_put(state.step, sharding.whole(mesh)))
    check_new(workdir)
    state = fresh(task, seed, frozen, mesh, weights)
    params = {name: network.params for name, network in like.networks.items()}
    shown = params if len(params) > 1 else next(iter(params.values()))
    logging.info("%s", parameter_overview.get_parameter_overview(shown, include_stats=False))
    return state


def fresh(task: Task, seed: int, frozen: Frozen, mesh: Mesh, weights: Weights | None = None) -> TrainState:
    """The state before the first step; arguments as of `start`."""

    def init(frozen: Frozen, weights: Weights) -> TrainState:
        state = tracing.init(task)(purpose_key(seed, "init"), frozen)
        return begin(task, state, weights) if weights else state

    places = sharding.place(tracing.init_shapes(task, frozen), mesh)
    return ordered(task, jax.jit(init, out_shardings=places)(frozen, weights or {}))


def mark(workdir: pathlib.Path, checkpoints: Checkpoints) -> None:
    """Leave a mark once there is a whole checkpoint, so that its loss is noticed at a later start."""
    if jax.process_index() == 0 and not (workdir / MARK).exists():
        # A step that is being written counts among `steps` and has not got its final name yet.
        if any(path.name.isdecimal() for path in checkpoints.directory.glob("*")):
            atomic_write(workdir / MARK, b"")


def had_checkpoints(workdir: pathlib.Path) -> bool:
    """Whether a run had a whole checkpoint once, wherever it is now."""
    return (workdir / MARK).exists() or any((workdir / "damaged").glob("*"))


def check_new(workdir: pathlib.Path) -> None:
    """Raise a UserError where a run had a checkpoint once, and none is left to go on from."""
    if sharding.anywhere(had_checkpoints(workdir)):
        raise UserError(
            f"{str(workdir)!r} had checkpoints, but none of them is there and whole; bring them back (is a disk not "
            "mounted?), or begin anew on purpose in an empty directory"
        )
