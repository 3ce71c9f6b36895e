"""The scan driver: noise to images along a grid, with any denoiser and solver; one compiled program."""

from __future__ import annotations

from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from archirf_jax.samplers.denoisers import Denoiser


class Solver(Protocol):
    """The contract of `samplers.solvers`."""

    def init(self, denoise: Denoiser, grid: np.ndarray, x: jax.Array) -> Any:
        """The memory before the first step; the denoiser's own is part of it.

        Raises:
            UserError: the solver cannot take these steps with this denoiser.
        """

    def step(
        self, z: jax.Array, denoise: Denoiser, x: jax.Array, t: jax.Array, t_next: jax.Array, y: Any, memory: Any
    ) -> tuple[jax.Array, Any]:
        """x at t -> x at t_next with the fresh noise z, and the memory for the next step."""


def sample(
    keys: jax.Array,
    denoise: Denoiser,
    y: Any,
    shape: tuple[int, ...],
    *,
    grid: np.ndarray,
    solver: Solver,
    start: jax.Array | None = None,
    stride: int = 0,
) -> jax.Array:
    """Images for the conditions y.

    Args:
        keys: (B,) one key an image, so that a picture does not depend on the batch it is drawn in.
        denoise: what the solver asks.
        y: conditions, a pytree with leading axis B.
        shape: of one image, (H, W, C).
        grid: (N, 2) steps, see `samplers.grids`.
        solver: see `samplers.solvers`.
        start: (B, H, W, C) x at the first time of the grid; None = the process's noise.
        stride: 0, or return also the start and every stride-th state, and the last one.

    Returns:
        (B, H, W, C) images around [-1, 1]; with a stride (1 + ceil(N / stride), B, H, W, C), the start first.

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
        x, memory, kept = carry
        i, t, t_next = step
        z = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, i), shape, x.dtype))(step_keys)
        x, memory = solver.step(z, denoise, x, t, t_next, y, memory)
        if kept is not None:  # a state is overwritten until its stride is full, so the last one always stays
            kept = kept.at[i // stride].set(x)
        return (x, memory, kept), None

    carry = (x, solver.init(denoise, grid, x), kept)
    (x_end, _, kept), _ = jax.lax.scan(body, carry, (jnp.arange(len(grid)), times[:, 0], times[:, 1]))
    return x_end if kept is None else jnp.concatenate([x[None], kept])


def noise(keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """(B, *shape) the standard normal noise that `sample` would start from with these keys, before its scale."""
    return jax.vmap(lambda key: jax.random.normal(jax.random.split(key)[0], shape))(keys)
