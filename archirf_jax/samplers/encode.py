"""The noise that data comes from: the deterministic sampler run backwards (Song et al. 2020, "DDIM", Sec. 4.3)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from archirf_jax.contracts import Condition, Denoiser
from archirf_jax.samplers import invariants
from archirf_jax.samplers.flow import velocity


def encode(
    denoise: Denoiser,
    x0: jax.Array,
    condition: Condition,
    *,
    grid: np.ndarray,
    iterations: int = 4,
    hoist: bool = True,
) -> jax.Array:
    """x at the first time of the grid from which Euler's steps (DDIM's with eta = 0) lead to x0.

    Each step is undone as it was made: x with x + (tau_next - tau) velocity(x, t) = x_next is a fixed point, found by
    iteration. One iteration is the usual approximation, which asks the network about the later state at the earlier
    time; more make the round trip exact. The network is never asked about t = 0.

    Args:
        denoise: without state.
        x0: (B, ...) data in [-1, 1].
        condition: its leaves have leading axis B.
        grid: (N, 2) steps as for sampling.
        iterations: evaluations a step, 1 or more.
        hoist: as for `sample`.
    """
    process = denoise.process
    state = denoise.init(x0)

    def back(x_next: jax.Array, step: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        t, t_next = step
        scale, scale_next = process.alpha(t) + process.sigma(t), process.alpha(t_next) + process.sigma(t_next)
        tau, tau_next = process.flow_time(t), process.flow_time(t_next)

        def closer(_: int, x: jax.Array) -> jax.Array:
            prediction, _state = denoise(x, t, condition, state, s=t_next)
            return scale * (x_next / scale_next + (tau - tau_next) * velocity(prediction))

        return jax.lax.fori_loop(0, iterations, closer, x_next * (scale / scale_next)), None

    times = jnp.asarray(grid[::-1], x0.dtype)
    scan = invariants.scan if hoist else jax.lax.scan
    return scan(back, x0, (times[:, 0], times[:, 1]))[0]
