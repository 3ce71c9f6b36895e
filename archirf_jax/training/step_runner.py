"""The compiled program that runs several steps of a task without waiting for the host."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from archirf_jax import sharding
from archirf_jax.contracts import Batch, Feed, Frozen, Metrics, Task, TrainState
from archirf_jax.training import tracing
from archirf_jax.training.state import purpose_key


class StepRunner:
    """Runs n <= feed.dispatch steps; metrics are (feed.dispatch, 2), the first n filled.

    A step that a guard stopped is not done, nor are those after it.

    Args:
        task: whose steps.
        feed: their data.
        seed: of the run.
        frozen: parameters of the frozen runs by name, an argument of every program.
        mesh: where batches, state and frozen parameters lie; None leaves it to them.
    """

    def __init__(
        self, task: Task, feed: Feed, seed: int, frozen: Frozen | None = None, mesh: Mesh | None = None
    ) -> None:
        self._task, self._feed, self._mesh = task, feed, mesh
        self.frozen = placed(frozen or {}, mesh)
        self._step_key, self._flip_key = purpose_key(seed, "step"), purpose_key(seed, "flip")
        self._program = jax.jit(self._steps, donate_argnums=0)
        self._compiled: dict[Any, Callable[..., Any]] = {}

    def compile(self, state: TrainState, chunk: Any) -> float:
        """Compile for such a state and chunk unless that is done; the seconds it took."""
        key = _shapes(chunk)
        if key in self._compiled:
            return 0.0
        begun, program = time.perf_counter(), self._program
        if self._mesh is not None:  # or XLA would choose where the state comes to lie
            places = (sharding.place(state, self._mesh), sharding.whole(self._mesh))
            program = jax.jit(self._steps, donate_argnums=0, out_shardings=places)
        self._compiled[key] = program.lower(state, self.frozen, chunk, np.int32(1)).compile()
        return time.perf_counter() - begun

    def __call__(self, state: TrainState, chunk: Any, n: int) -> tuple[TrainState, Metrics]:
        """The state after n steps, whose memory is given away, and their metrics."""
        program = self._compiled.get(_shapes(chunk), self._program)
        after, rows = program(state, self.frozen, chunk, np.int32(n))
        return ordered(self._task, after), rows

    def batch(self, chunk: Any, i: Any, step: jax.Array) -> tuple[Batch, jax.Array]:
        """(the batch, the key) of a step."""
        batch = self._feed.batch(chunk, i, jax.random.fold_in(self._flip_key, step))
        if self._mesh is not None:
            batch = jax.lax.with_sharding_constraint(batch, sharding.of_batch(self._mesh))
        return batch, jax.random.fold_in(self._step_key, step)

    def _one(self, frozen: Frozen, chunk: Any, i: Any, state: TrainState) -> tuple[TrainState, Metrics]:
        batch, key = self.batch(chunk, i, state.step)
        with sharding.gathering(self._mesh):
            state, metrics = tracing.step(self._task)(state, frozen, batch, key)
        if self._mesh is not None:
            state = jax.lax.with_sharding_constraint(state, sharding.place(state, self._mesh))
        return state, metrics

    def _steps(self, state: TrainState, frozen: Frozen, chunk: Any, n: jax.Array) -> tuple[TrainState, Metrics]:
        one = jax.jit(self._one, inline=True)  # so that it is traced once for its shapes and for the loop
        _, shapes = jax.eval_shape(one, frozen, chunk, jnp.int32(0), state)
        rows = {name: jnp.zeros((self._feed.dispatch, *value.shape), value.dtype) for name, value in shapes.items()}

        def running(carry: Any) -> jax.Array:
            i, state, _ = carry
            return (i < n) & ~stopped(state)

        def body(carry: Any) -> Any:
            i, state, rows = carry
            state, metrics = one(frozen, chunk, i, state)
            return i + 1, state, {name: rows[name].at[i].set(value) for name, value in metrics.items()}

        # The trip count is traced: one program for any n, hence the same bits however a run is cut into dispatches.
        _, state, rows = jax.lax.while_loop(running, body, (jnp.int32(0), state, rows))
        return state, rows


def stopped(state: TrainState) -> jax.Array:
    """() whether the guard of any network has stopped the step of this state."""
    return functools.reduce(jnp.logical_or, [network.guard.stopped > 0 for network in state.networks.values()])


def ordered(task: Task, state: TrainState) -> TrainState:
    """The state with its networks in the task's order: programs return dicts in the order of their keys."""
    return dataclasses.replace(state, networks={name: state.networks[name] for name in task.updates})


def placed(frozen: Frozen, mesh: Mesh | None) -> Frozen:
    """Parameters of frozen runs on the devices, cut by the same rule as trained ones."""
    return jax.device_put(dict(frozen), None if mesh is None else sharding.place(dict(frozen), mesh))


def _shapes(chunk: Any) -> Any:
    leaves, tree = jax.tree.flatten(chunk)
    return tree, tuple((np.shape(leaf), np.dtype(leaf.dtype)) for leaf in leaves)
