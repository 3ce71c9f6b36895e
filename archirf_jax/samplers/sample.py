"""The scan driver: noise to images along a time grid, with any process, ModelFn and solver."""

from __future__ import annotations

from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from archirf_jax.processes.base import ModelFn, Process


class Solver(Protocol):
    """The contract of `samplers.solvers`."""

    def init(self, x: jax.Array) -> Any:
        """The memory before the first step."""

    def step(
        self,
        keys: jax.Array,
        process: Process,
        model_fn: ModelFn,
        x: jax.Array,
        t: jax.Array,
        t_next: jax.Array,
        y: Any,
        memory: Any,
    ) -> tuple[jax.Array, Any]:
        """x at t -> x at t_next, and the memory for the next step."""


def sample(
    keys: jax.Array,
    process: Process,
    model_fn: ModelFn,
    y: Any,
    shape: tuple[int, ...],
    *,
    grid: np.ndarray,
    solver: Solver,
    trajectory: bool = False,
) -> jax.Array:
    """Images for the conditions y.

    Args:
        keys: (B,) one key an image, so that a picture does not depend on the batch it is drawn in.
        process: gives the noise and the meaning of the network's output.
        model_fn: the network, guided or not.
        y: conditions, a pytree with leading axis B.
        shape: of one image, (H, W, C).
        grid: (N + 1,) falling times.
        solver: see `samplers.solvers`.
        trajectory: also return every state on the way.

    Returns:
        (B, H, W, C) images around [-1, 1]; with trajectory (N + 1, B, H, W, C), the noise first.
    """
    noise_keys, step_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
    x = jax.vmap(lambda key: process.prior(key, shape))(noise_keys)
    times = jnp.asarray(grid, x.dtype)

    def body(carry: tuple[jax.Array, Any], step: tuple[jax.Array, ...]) -> tuple[tuple[jax.Array, Any], Any]:
        i, t, t_next = step
        folded = jax.vmap(lambda key: jax.random.fold_in(key, i))(step_keys)
        carry = solver.step(folded, process, model_fn, carry[0], t, t_next, y, carry[1])
        return carry, carry[0] if trajectory else None

    steps = (jnp.arange(len(grid) - 1), times[:-1], times[1:])
    (x_end, _), states = jax.lax.scan(body, (x, solver.init(x)), steps)
    return jnp.concatenate([x[None], states]) if trajectory else x_end
