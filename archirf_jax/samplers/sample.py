"""The scan driver: from noise to data along a grid, with any denoiser and solver, as one compiled program."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from archirf_jax.contracts import Condition, Denoiser, Solver
from archirf_jax.samplers import invariants


def sample(
    keys: jax.Array,
    denoise: Denoiser,
    condition: Condition,
    shape: tuple[int, ...],
    *,
    grid: np.ndarray,
    solver: Solver,
    start: jax.Array | None = None,
    stride: int = 0,
    hoist: bool = True,
) -> jax.Array:
    """Samples for the conditions.

    Args:
        keys: (B,) one key an example, so that a sample does not depend on the batch it is drawn in.
        denoise: what the solver asks.
        condition: its leaves have leading axis B.
        shape: of one example, such as (H, W, C).
        grid: (N, 2) steps, see `samplers.grids`.
        solver: see `samplers.solvers`.
        start: (B, *shape) x at the first time of the grid; None = the process's noise.
        stride: 0, or return also the start, every stride-th state and the last one.
        hoist: compute what is the same at every step, such as weights in bfloat16, once; it stays in memory.

    Returns:
        (B, *shape) around [-1, 1]; with a stride (1 + ceil(N / stride), B, *shape), the start first.

    Raises:
        UserError: grid, solver and process do not fit.
    """
    first = float(grid[0, 0])
    denoise.process.check_start(first)
    noise_keys, step_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
    x = start
    if x is None:
        x = jax.vmap(lambda key: denoise.process.prior(key, shape, first))(noise_keys)
    times = jnp.asarray(grid, x.dtype)
    kept = jnp.zeros((-(-len(grid) // stride), *x.shape), x.dtype) if stride else None

    def body(carry: tuple[jax.Array, Any, Any], step: tuple[jax.Array, ...]) -> tuple[tuple[jax.Array, Any, Any], None]:
        x, solver_state, kept = carry
        i, t, t_next = step
        fresh = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, i), shape, x.dtype))(step_keys)
        x, solver_state = solver.step(fresh, denoise, x, t, t_next, condition, solver_state)
        if kept is not None:  # a state is overwritten until its stride is full, so the last one always stays
            kept = kept.at[i // stride].set(x)
        return (x, solver_state, kept), None

    carry = (x, solver.init(denoise, grid, x), kept)
    scan = invariants.scan if hoist else jax.lax.scan
    (x_end, _, kept), _ = scan(body, carry, (jnp.arange(len(grid)), times[:, 0], times[:, 1]))
    return x_end if kept is None else jnp.concatenate([x[None], kept])


def noise(keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """(B, *shape) the standard normal noise that `sample` starts from with these keys, before its scale."""
    return jax.vmap(lambda key: jax.random.normal(jax.random.split(key)[0], shape))(keys)
