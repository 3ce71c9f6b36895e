"""Exact log-likelihood along the probability-flow ODE of any process (Song et al. 2021, Sec. 4.3 and Appendix D.2).

In straight coordinates (`processes.base`) d/dtau log p = -div v along the way, so the density at the data's end is that
of the prior plus the integral of the divergence. Images have grey levels and no density: they are dequantised by the
process's own noise, cut to half a level (Zheng et al. 2023, "Improved Techniques for Maximum Likelihood Estimation for
Diffusion ODEs", Sec. 4.1), so that the network meets what it was trained on.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from archirf_jax.errors import UserError
from archirf_jax.samplers.denoisers import Denoiser
from archirf_jax.samplers.straight import check_consistent, halfway, velocity


class Likelihood(NamedTuple):
    """A figure for each image and the size of its two errors; each (B,).

    Attributes:
        value: log-density in nats, or bits per dimension.
        standard_error: of the trace estimate; 0 where the trace is exact.
        step_error: of the steps, estimated from half as many.
    """

    value: jax.Array
    standard_error: jax.Array
    step_error: jax.Array


def log_density(
    keys: jax.Array, denoise: Denoiser, x: jax.Array, y: Any, *, grid: np.ndarray, probes: int | None = 1
) -> Likelihood:
    """The log-density of x under the model at the last time of the grid, by the midpoint method.

    Args:
        keys: (B,) one key an image, for the probes.
        denoise: without memory; guidance changes what is measured.
        x: (B, H, W, C) at the last time of the grid.
        y: conditions, a pytree with leading axis B.
        grid: (N, 2) steps as for sampling, N even, from where the prior holds to a time above 0.
        probes: random vectors of Hutchinson's estimate of the trace; the standard error of a single one is nan. None =
            the exact trace, at H W C times the cost of one.

    Raises:
        UserError: a grid that does not fit together, reaches 0 or has an odd number of steps.
    """
    check_consistent(grid, "log_density")
    if len(grid) % 2 or grid[-1, 1] <= 0:
        raise UserError(f"grid: {len(grid)} steps down to t={grid[-1, 1]:g}; an even number down to above 0 is needed")
    denoise.process.check_start(float(grid[0, 0]))
    vectors = _basis(x) if probes is None else _rademacher(keys, x, probes)
    every_second = np.stack([grid[::2, 0], grid[1::2, 1]], axis=1)
    fine, coarse = (_integrate(denoise, x, y, steps, vectors, exact=probes is None) for steps in (grid, every_second))
    value = jnp.mean(fine, axis=0)
    spread = jnp.zeros_like(value) if probes is None else jnp.std(fine, axis=0, ddof=1) / math.sqrt(probes)
    return Likelihood(value, spread, jnp.abs(value - jnp.mean(coarse, axis=0)) / 3)


def bits_per_dim(
    keys: jax.Array,
    denoise: Denoiser,
    x0: jax.Array,
    y: Any,
    *,
    grid: np.ndarray,
    probes: int | None = 1,
    levels: int = 256,
) -> Likelihood:
    """Bits per dimension of images with `levels` grey levels in [-1, 1]; in the mean over noise a bound from above.

    The grid ends where the noise, sigma / alpha, is some thirds of half a level or less, but not below what the network
    was trained on (0.01 for DDPM's linear betas, a third of half a level if there are 34); otherwise as `log_density`.
    """
    process, last = denoise.process, jnp.asarray(grid[-1, 1], x0.dtype)
    ratio = process.ratio(last)
    cut = 1 / (levels - 1) / ratio  # half a level, in units of the noise
    noise_keys, probe_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
    noise = jax.vmap(lambda key: jax.random.truncated_normal(key, -cut, cut, x0.shape[1:], x0.dtype))(noise_keys)
    x = process.noised(x0, noise, last)
    found = log_density(probe_keys, denoise, x, y, grid=grid, probes=probes)
    # Minus the log-density of the very noise that was drawn: its mean, the entropy, would leave the draw's luck in.
    mass = jax.scipy.special.erf(cut / math.sqrt(2))
    surprise = jnp.mean(jnp.square(noise), axis=(1, 2, 3)) / 2
    surprise += jnp.log(math.sqrt(2 * math.pi) * process.sigma(last) * mass)
    nats, size = math.log(2), x0[0].size
    return Likelihood(
        -(found.value / size + surprise) / nats, found.standard_error / size / nats, found.step_error / size / nats
    )


def _rademacher(keys: jax.Array, x: jax.Array, count: int) -> jax.Array:
    """(count, B, H, W, C) signs."""
    return jnp.moveaxis(jax.vmap(lambda key: jax.random.rademacher(key, (count, *x.shape[1:]), x.dtype))(keys), 1, 0)


def _basis(x: jax.Array) -> jax.Array:
    """(H W C, B, H, W, C) unit vectors."""
    size = x[0].size
    return jnp.broadcast_to(jnp.eye(size, dtype=x.dtype).reshape(size, 1, *x.shape[1:]), (size, *x.shape))


def _integrate(denoise: Denoiser, x: jax.Array, y: Any, grid: np.ndarray, vectors: jax.Array, exact: bool) -> jax.Array:
    """Log-densities of x, (K, B) by the trace each vector estimates, or (1, B) by their sum."""
    process, past = denoise.process, denoise.init(x)

    def scale(t: jax.Array) -> jax.Array:
        return process.alpha(t) + process.sigma(t)

    def flow(straight: jax.Array, t: jax.Array) -> jax.Array:
        return velocity(denoise(scale(t) * straight, t, y, past)[0])

    def up(carry: tuple[jax.Array, jax.Array], step: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
        straight, total = carry
        t_next, t = step
        width, middle = process.flow_time(t_next) - process.flow_time(t), halfway(process, t, t_next)
        guess = straight + width / 2 * flow(straight, t)
        v, jacobian = jax.linearize(lambda s: flow(s, middle), guess)
        traces = jnp.sum(vectors * jax.vmap(jacobian)(vectors), axis=(2, 3, 4))
        traces = jnp.sum(traces, axis=0, keepdims=True) if exact else traces
        return (straight + width * v, total + width * traces), None

    times = jnp.asarray(grid[::-1], x.dtype)
    first, last = times[-1, 0], times[0, 1]
    start = (x / scale(last), jnp.zeros((1 if exact else len(vectors), len(x)), x.dtype))
    (straight, total), _ = jax.lax.scan(up, start, (times[:, 0], times[:, 1]))
    tau = process.flow_time(first)
    size = x[0].size
    prior = -0.5 * jnp.sum(jnp.square(straight / tau), axis=(1, 2, 3)) - size * jnp.log(tau * math.sqrt(2 * math.pi))
    return prior + total - size * jnp.log(scale(last))
