"""Exact log-likelihood along the probability-flow ODE of any process (Song et al. 2021, Sec. 4.3 and Appendix D.2).

In flow coordinates (`processes.base`) d/dtau log p = -div v along the flow, so the density at the data's end is that of
the prior plus the integral of the divergence. Images have grey levels, not a density: they are dequantised by the
process's own noise, cut to half a level (Zheng et al. 2023, "Improved Techniques for Maximum Likelihood Estimation for
Diffusion ODEs", Sec. 4.1), so that the network meets what it was trained on.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from archirf_jax.contracts import Condition, Denoiser
from archirf_jax.errors import UserError
from archirf_jax.samplers.flow import halfway, is_consistent, velocity


class Likelihood(NamedTuple):
    """A value for each example and the sizes of its two errors; each (B,).

    Attributes:
        value: log-density in nats, or bits per dimension.
        standard_error: of the trace estimate; 0 where the trace is exact.
        step_error: of the steps, estimated from half as many.
    """

    value: jax.Array
    standard_error: jax.Array
    step_error: jax.Array


def log_density(
    keys: jax.Array, denoise: Denoiser, x: jax.Array, condition: Condition, *, grid: np.ndarray, probes: int | None = 1
) -> Likelihood:
    """The log-density of x under the model at the last time of the grid, by the midpoint method.

    Args:
        keys: (B,) one key an example, for the probes.
        denoise: without state; guidance changes what is measured.
        x: (B, ...) at the last time of the grid.
        condition: its leaves have leading axis B.
        grid: (N, 2) steps as for sampling, N even, from where the prior holds to a time above 0.
        probes: random vectors of Hutchinson's estimate of the trace; the standard error of a single one is nan. None =
            the exact trace, at as many times the cost of one as x has values.

    Raises:
        UserError: a grid that does not fit together, reaches 0 or has an odd number of steps.
    """
    if not is_consistent(grid):
        raise UserError("grid", message="needs steps that fit together, which those of 'archirf' do not")
    if len(grid) % 2 or grid[-1, 1] <= 0:
        raise UserError(
            "grid",
            message=f"has {len(grid)} steps down to t={grid[-1, 1]:g} and needs an even number, down to t above 0",
        )
    denoise.process.check_start(float(grid[0, 0]))
    vectors = _basis(x) if probes is None else _rademacher(keys, x, probes)
    every_second = np.stack([grid[::2, 0], grid[1::2, 1]], axis=1)
    fine, coarse = (
        _integrate(denoise, x, condition, steps, vectors, exact=probes is None) for steps in (grid, every_second)
    )
    value = jnp.mean(fine, axis=0)
    spread = jnp.zeros_like(value) if probes is None else jnp.std(fine, axis=0, ddof=1) / math.sqrt(probes)
    return Likelihood(value, spread, jnp.abs(value - jnp.mean(coarse, axis=0)) / 3)


def bits_per_dim(
    keys: jax.Array,
    denoise: Denoiser,
    x0: jax.Array,
    condition: Condition,
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
    found = log_density(probe_keys, denoise, x, condition, grid=grid, probes=probes)
    # Use the log-density of the noise that was drawn, not its expectation (the entropy): this removes variance.
    mass = jax.scipy.special.erf(cut / math.sqrt(2))
    surprise = jnp.mean(jnp.square(noise), axis=tuple(range(1, noise.ndim))) / 2
    surprise += jnp.log(math.sqrt(2 * math.pi) * process.sigma(last) * mass)
    nats, size = math.log(2), x0[0].size
    return Likelihood(
        -(found.value / size + surprise) / nats, found.standard_error / size / nats, found.step_error / size / nats
    )


def _rademacher(keys: jax.Array, x: jax.Array, count: int) -> jax.Array:
    """(count, B, ...) signs."""
    return jnp.moveaxis(jax.vmap(lambda key: jax.random.rademacher(key, (count, *x.shape[1:]), x.dtype))(keys), 1, 0)


def _basis(x: jax.Array) -> jax.Array:
    """(size, B, ...) unit vectors."""
    size = x[0].size
    return jnp.broadcast_to(jnp.eye(size, dtype=x.dtype).reshape(size, 1, *x.shape[1:]), (size, *x.shape))


def _integrate(
    denoise: Denoiser, x: jax.Array, condition: Condition, grid: np.ndarray, vectors: jax.Array, exact: bool
) -> jax.Array:
    """Log-densities of x, (K, B) by the trace each vector estimates, or (1, B) by their sum."""
    process, state, axes = denoise.process, denoise.init(x), tuple(range(1, x.ndim))

    def scale(t: jax.Array) -> jax.Array:
        return process.alpha(t) + process.sigma(t)

    def flow(z: jax.Array, t: jax.Array) -> jax.Array:
        return velocity(denoise(scale(t) * z, t, condition, state)[0])

    def up(carry: tuple[jax.Array, jax.Array], step: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
        z, total = carry
        t_next, t = step
        width, middle = process.flow_time(t_next) - process.flow_time(t), halfway(process, t, t_next)
        guess = z + width / 2 * flow(z, t)
        v, jacobian = jax.linearize(lambda z: flow(z, middle), guess)
        traces = jnp.sum(vectors * jax.vmap(jacobian)(vectors), axis=tuple(axis + 1 for axis in axes))
        traces = jnp.sum(traces, axis=0, keepdims=True) if exact else traces
        return (z + width * v, total + width * traces), None

    times = jnp.asarray(grid[::-1], x.dtype)
    first, last = times[-1, 0], times[0, 1]
    start = (x / scale(last), jnp.zeros((1 if exact else len(vectors), len(x)), x.dtype))
    (z, total), _ = jax.lax.scan(up, start, (times[:, 0], times[:, 1]))
    tau = process.flow_time(first)
    size = x[0].size
    prior = -0.5 * jnp.sum(jnp.square(z / tau), axis=axes) - size * jnp.log(tau * math.sqrt(2 * math.pi))
    return prior + total - size * jnp.log(scale(last))
