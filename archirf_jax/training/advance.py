"""The compiled program that runs several steps of a task without a word from the host."""

from __future__ import annotations

import time
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from archirf_jax import sharding
from archirf_jax.training.state import TrainState, purpose_key
from archirf_jax.training.update import Losses, Metrics


class Task(Protocol):
    """What the loop asks of a task."""

    def init(self, key: jax.Array) -> TrainState:
        """The state before the first step."""

    def step(self, state: TrainState, batch: Any, key: jax.Array) -> tuple[TrainState, Metrics]:
        """One update and its metrics, "loss" among them."""

    def draw(self, state: TrainState, batch: Any, key: jax.Array) -> Any:
        """What the losses of a batch are computed from, a pytree with leading axis B."""

    def losses(self, key: jax.Array) -> Losses:
        """The losses of what was drawn with the step's key."""

    def constrained(self, params: Any) -> Any:
        """The parameters as a step begins with."""

    def preview(self, state: TrainState, key: jax.Array) -> np.ndarray:
        """(rows, columns, H, W, C) uint8 pictures."""

    def animate(self, state: TrainState, key: jax.Array) -> np.ndarray:
        """(frames, rows, columns, H, W, C) uint8 pictures."""


class Feed(Protocol):
    """What the loop asks of the data (`data.pipeline`)."""

    dispatch: int

    def chunk(self, step: int, n: int) -> Any:
        """What `batch` needs for n steps from `step` on."""

    def batch(self, chunk: Any, i: jax.Array, key: jax.Array) -> Any:
        """The chunk's i-th batch."""

    def close(self) -> None:
        """Release what the feed holds; the next chunk begins anew."""


class Advance:
    """Runs n <= feed.dispatch steps; metrics are (feed.dispatch, 2), the first n filled.

    A step that the guard stopped is not done, nor are those after it.

    Args:
        task: whose steps.
        feed: their data.
        seed: of the run.
        mesh: where batches and state lie; None leaves it to them.
    """

    def __init__(self, task: Task, feed: Feed, seed: int, mesh: Mesh | None = None) -> None:
        self._task, self._feed, self._mesh = task, feed, mesh
        self._step_key, self._flip_key = purpose_key(seed, "step"), purpose_key(seed, "flip")
        self._program: Any = jax.jit(self._steps, donate_argnums=0)

    def compile(self, state: TrainState, chunk: Any) -> float:
        """Compile for such a state and chunk; the seconds it took."""
        begun = time.perf_counter()
        if self._mesh is not None:  # or XLA would choose where the state comes to lie
            places = (sharding.place(state, self._mesh), sharding.whole(self._mesh))
            self._program = jax.jit(self._steps, donate_argnums=0, out_shardings=places)
        self._program = self._program.lower(state, chunk, np.int32(1)).compile()
        return time.perf_counter() - begun

    def __call__(self, state: TrainState, chunk: Any, n: int) -> tuple[TrainState, Metrics]:
        """The state after n steps, whose memory is given away, and their metrics."""
        after, rows = self._program(state, chunk, np.int32(n))
        return after, rows

    def batch(self, chunk: Any, i: Any, step: jax.Array) -> tuple[Any, jax.Array]:
        """(the batch, the key) of a step."""
        batch = self._feed.batch(chunk, i, jax.random.fold_in(self._flip_key, step))
        if self._mesh is not None:
            batch = jax.lax.with_sharding_constraint(batch, sharding.of_batch(self._mesh))
        return batch, jax.random.fold_in(self._step_key, step)

    def _one(self, chunk: Any, i: Any, state: TrainState) -> tuple[TrainState, Metrics]:
        batch, key = self.batch(chunk, i, state.step)
        state, metrics = self._task.step(state, batch, key)
        if self._mesh is not None:
            state = jax.lax.with_sharding_constraint(state, sharding.place(state, self._mesh))
        return state, metrics

    def _steps(self, state: TrainState, chunk: Any, n: jax.Array) -> tuple[TrainState, Metrics]:
        one = jax.jit(self._one, inline=True)  # so that it is traced once for its shapes and for the loop
        _, shapes = jax.eval_shape(one, chunk, jnp.int32(0), state)
        rows = {name: jnp.zeros((self._feed.dispatch, *value.shape), value.dtype) for name, value in shapes.items()}

        def running(carry: Any) -> jax.Array:
            i, state, _ = carry
            return (i < n) & (state.guard.stopped == 0)

        def body(carry: Any) -> Any:
            i, state, rows = carry
            state, metrics = one(chunk, i, state)
            return i + 1, state, {name: rows[name].at[i].set(value) for name, value in metrics.items()}

        # The trip count is traced: one program for any n, hence the same bits however a run is cut into dispatches.
        _, state, rows = jax.lax.while_loop(running, body, (jnp.int32(0), state, rows))
        return state, rows
