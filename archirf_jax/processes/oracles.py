"""Perfect networks: for data that is a mixture of normal distributions the best denoiser is a closed form.

E[x0 | x_t] under p(x0) = sum_i w_i N(m_i, s_i^2 I) is the weighted mean of the components' own. The only error of a
sampler that is given it is the sampler's. A component with s = 0 is a point. Data may have any rank.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from archirf_jax.contracts import Condition, Extras, ModelFn
from archirf_jax.processes.base import Process, Times, backend, expand
from archirf_jax.processes.ddpm import DDPM
from archirf_jax.processes.edm import EDM
from archirf_jax.processes.rectified_flow import RectifiedFlow


@dataclasses.dataclass(frozen=True)
class Mixture:
    """A mixture of normal distributions.

    Attributes:
        means: (K, ...), or (B, K, ...) for examples that have mixtures of their own; stds and weights likewise.
        stds: (K,) or (B, K), 0 or more.
        weights: (K,) or (B, K), adding up to 1.
    """

    means: np.ndarray | jax.Array
    stds: np.ndarray | jax.Array
    weights: np.ndarray | jax.Array

    def denoise(self, x: jax.Array, alpha: jax.Array, sigma: jax.Array) -> jax.Array:
        """E[x0 | x] for x (B, ...) at alpha (B,), sigma (B,)."""
        distance, variance, log_joint = self._log_joint(x, alpha, sigma)
        gain = alpha[:, None] * jnp.asarray(self.stds, x.dtype) ** 2 / variance
        share = _expand(jax.nn.softmax(log_joint, axis=1), distance)
        means = jnp.asarray(self.means, x.dtype)
        return jnp.sum(share * (means + _expand(gain, distance) * distance), axis=1)

    def log_prob(self, x: jax.Array, alpha: jax.Array, sigma: jax.Array) -> jax.Array:
        """(B,) log-density of x (B, ...) = alpha x0 + sigma eps."""
        return jax.nn.logsumexp(self._log_joint(x, alpha, sigma)[2], axis=1)

    def log_posterior(self, x: jax.Array, alpha: jax.Array, sigma: jax.Array) -> jax.Array:
        """(B, K) log-probabilities that x came from each component: the perfect noisy classifier."""
        return jax.nn.log_softmax(self._log_joint(x, alpha, sigma)[2], axis=1)

    def sample(self, key: jax.Array, count: int) -> jax.Array:
        """(count, ...) independent draws."""
        key_component, key_noise = jax.random.split(key)
        component = jax.random.choice(key_component, len(self.weights), (count,), p=jnp.asarray(self.weights))
        noise = jax.random.normal(key_noise, (count, *self.means.shape[1:]))
        std = expand(jnp.asarray(self.stds)[component], noise)
        return jnp.asarray(self.means)[component] + std * noise

    def _log_joint(self, x: jax.Array, alpha: jax.Array, sigma: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Distances from the means (B, K, ...), variances (B, K) and log-densities of component and x (B, K)."""
        a, s = alpha[:, None], sigma[:, None]
        distance = x[:, None] - _expand(a, x[:, None]) * jnp.asarray(self.means, x.dtype)
        variance = a**2 * jnp.asarray(self.stds, x.dtype) ** 2 + s**2
        square = jnp.sum(jnp.square(distance), axis=tuple(range(2, distance.ndim))) / variance
        log_density = -0.5 * (square + x[0].size * jnp.log(2 * jnp.pi * variance))
        return distance, variance, jnp.log(jnp.asarray(self.weights, x.dtype)) + log_density


def _expand(values: jax.Array, like: jax.Array) -> jax.Array:
    """(B, K) values with trailing axes of size 1, to broadcast against `like` (B, K, ...)."""
    return values.reshape(values.shape + (1,) * (like.ndim - 2))


def gaussian(mean: Any, std: float, shape: tuple[int, ...] = (1, 1, 1)) -> Mixture:
    """One normal distribution."""
    return Mixture(np.broadcast_to(np.asarray(mean, np.float64), (1, *shape)), np.asarray([std]), np.ones(1))


def network(process: Process, data: Mixture) -> ModelFn:
    """The ModelFn that training `process` on `data` would end in; it ignores conditions and sows nothing.

    Further channels, which are a learned variance, are -1: the posterior's own variance.
    """

    def model_fn(
        x: jax.Array, t: jax.Array, condition: Condition, *, s: jax.Array | None = None
    ) -> tuple[jax.Array, Extras]:
        t = process_time(process, t)
        x = x / process.network_input(jnp.ones_like(x), t)
        alpha, sigma = process.alpha(t), process.sigma(t)
        x0 = data.denoise(x, alpha, sigma)
        eps = (x - expand(alpha, x) * x0) / expand(sigma, x)
        more = process.output_channels(x.shape[-1]) - x.shape[-1]
        learned = jnp.full((*x.shape[:-1], more), -1.0, x.dtype)
        return jnp.concatenate([process.target(x0, eps, t), learned], axis=-1), {}

    return model_fn


def process_time(process: Process, network_time: Times) -> Times:
    """The times t at which `process.network_time` has these values."""
    if isinstance(process, DDPM):
        return (network_time + 1) / process.steps
    if isinstance(process, EDM):
        return process.time_of_ratio(backend(network_time).exp(4 / process.time_scale * network_time))
    assert isinstance(process, RectifiedFlow), process
    t = network_time / process.time_scale
    return t if process.towards == "noise" else 1 - t
