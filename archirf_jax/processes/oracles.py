"""Perfect networks: for data that is a mixture of normal distributions the best denoiser is a closed form.

E[x0 | x_t] under p(x0) = sum_i w_i N(m_i, s_i^2 I) is a weighted mean of what each component says. A sampler that is
given it makes no error but its own. A component with s = 0 is a single image.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from archirf_jax.processes.base import ModelFn, Process, expand
from archirf_jax.processes.ddpm import DDPM


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Normal distributions around images.

    Attributes:
        means: (K, H, W, C).
        stds: (K,), 0 or more.
        weights: (K,), adding up to 1.
    """

    means: np.ndarray
    stds: np.ndarray
    weights: np.ndarray

    def denoise(self, x: jax.Array, alpha: jax.Array, sigma: jax.Array) -> jax.Array:
        """E[x0 | x] for x (B, H, W, C) at alpha (B,), sigma (B,)."""
        means, stds = jnp.asarray(self.means, x.dtype), jnp.asarray(self.stds, x.dtype)
        a, s = alpha[:, None], sigma[:, None]
        variance = a**2 * stds**2 + s**2  # (B, K)
        distance = x[:, None] - a[..., None, None, None] * means
        gain = (a * stds**2 / variance)[..., None, None, None]
        share = jax.nn.softmax(self._log_joint(distance, variance), axis=1)
        return jnp.einsum("bk,bkhwc->bhwc", share, means + gain * distance)

    def log_prob(self, x: jax.Array, alpha: jax.Array, sigma: jax.Array) -> jax.Array:
        """(B,) log-density of x (B, H, W, C) = alpha x0 + sigma eps."""
        a, s = alpha[:, None], sigma[:, None]
        distance = x[:, None] - a[..., None, None, None] * jnp.asarray(self.means, x.dtype)
        variance = a**2 * jnp.asarray(self.stds, x.dtype) ** 2 + s**2
        return jax.nn.logsumexp(self._log_joint(distance, variance), axis=1)

    def log_posterior(self, x: jax.Array, alpha: jax.Array, sigma: jax.Array) -> jax.Array:
        """(B, K) log-probabilities that x came from each component: the perfect noisy classifier."""
        a, s = alpha[:, None], sigma[:, None]
        distance = x[:, None] - a[..., None, None, None] * jnp.asarray(self.means, x.dtype)
        variance = a**2 * jnp.asarray(self.stds, x.dtype) ** 2 + s**2
        return jax.nn.log_softmax(self._log_joint(distance, variance), axis=1)

    def sample(self, key: jax.Array, count: int) -> jax.Array:
        """(count, H, W, C) independent draws."""
        key_component, key_noise = jax.random.split(key)
        component = jax.random.choice(key_component, len(self.weights), (count,), p=jnp.asarray(self.weights))
        noise = jax.random.normal(key_noise, (count, *self.means.shape[1:]))
        std = expand(jnp.asarray(self.stds)[component], noise)
        return jnp.asarray(self.means)[component] + std * noise

    def _log_joint(self, distance: jax.Array, variance: jax.Array) -> jax.Array:
        dimensions = distance[0, 0].size
        square = jnp.sum(jnp.square(distance), axis=(2, 3, 4)) / variance
        log_density = -0.5 * (square + dimensions * jnp.log(2 * jnp.pi * variance))
        return jnp.log(jnp.asarray(self.weights, distance.dtype)) + log_density


def gaussian(mean: Any, std: float, shape: tuple[int, ...] = (1, 1, 1)) -> Mixture:
    """One normal distribution."""
    return Mixture(np.broadcast_to(np.asarray(mean, np.float64), (1, *shape)), np.asarray([std]), np.ones(1))


def network(process: Process, data: Mixture) -> ModelFn:
    """The ModelFn that training `process` on `data` would end in; it ignores conditions.

    A learned variance is the posterior's own (-1, the lower end), an uncertainty is 0.
    """

    def model_fn(x_in: jax.Array, network_time: jax.Array, y: Any) -> jax.Array:
        t = process.time(network_time)
        x = x_in / process.network_input(jnp.ones_like(x_in), t)
        alpha, sigma = process.alpha(t), process.sigma(t)
        x0 = data.denoise(x, alpha, sigma)
        eps = (x - expand(alpha, x) * x0) / expand(sigma, x)
        answer = process.target(x0, eps, t)
        more = process.output_channels(x.shape[-1]) - x.shape[-1]
        extra = jnp.full((*x.shape[:-1], more), -1.0 if isinstance(process, DDPM) else 0.0, x.dtype)
        return jnp.concatenate([answer, extra], axis=-1)

    return model_fn
