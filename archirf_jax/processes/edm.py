"""EDM (Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models") and EDM2's uncertainty
(Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models").

    x = x0 + sigma eps
    D(x, sigma) = c_skip x + c_out F(c_in x, ln(sigma) / 4)       a wrapper around any network F

F learns (x0 - c_skip x) / c_out, which has variance 1 at every sigma, so that the paper's weights c_out^-2 become 1.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from archirf_jax.errors import UserError
from archirf_jax.processes.base import Prediction, Process, Times, backend, check_positive, expand


@dataclasses.dataclass(frozen=True)
class EDM(Process):
    """Noise of growing size on an image of fixed size.

    t is sigma / (1 + sigma), scaled to be 1 at sigma_max.

    Attributes:
        sigma_data: standard deviation of the images.
        sigma_min: smallest sigma that is sampled with.
        sigma_max: sigma at t = 1.
        log_mean: mean of ln(sigma) in training (EDM -1.2, EDM2 -0.4).
        log_std: standard deviation of ln(sigma) in training (EDM 1.2, EDM2 1.0).
        time_scale: the network is told time_scale ln(sigma) / 4; 1 as published, more for networks whose time
            embedding expects numbers up to 1000.
        uncertainty: the network answers one channel more: u, the logarithm of the expected loss, which learns
            loss / exp(u) + u (EDM2, Eq. 15).
        uncertainty_channels: random features of the time that u is a linear function of.

    Raises:
        UserError: a field out of its range.
    """

    sigma_data: float = 0.5
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    log_mean: float = -1.2
    log_std: float = 1.2
    time_scale: float = 1.0
    uncertainty: bool = False
    uncertainty_channels: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "sigma_data", "sigma_min", "sigma_max", "log_std", "time_scale", "uncertainty_channels")
        if self.sigma_min >= self.sigma_max:
            raise UserError(f"config.process.sigma_min: {self.sigma_min} must be below sigma_max={self.sigma_max}")

    @functools.cached_property
    def _last(self) -> float:
        return self.sigma_max / (1 + self.sigma_max)

    def alpha(self, t: Times) -> Times:
        """1."""
        return backend(t).ones_like(t)

    def sigma(self, t: Times) -> Times:
        """The size of the noise at times t."""
        return self._last * t / (1 - self._last * t)

    def time_of_ratio(self, ratio: Times) -> Times:
        """The times at which sigma has these values."""
        return ratio / (1 + ratio) / self._last

    def network_time(self, t: Times) -> Times:
        """time_scale ln(sigma) / 4."""
        return self.time_scale / 4 * backend(t).log(self.sigma(t))

    def time(self, network_time: Times) -> Times:
        """The inverse of `network_time`."""
        return self.time_of_ratio(backend(network_time).exp(4 / self.time_scale * network_time))

    def network_input(self, x: jax.Array, t: jax.Array) -> jax.Array:
        """c_in x, of variance 1."""
        return x / expand(jnp.hypot(self.sigma(t), self.sigma_data), x)

    def sample_times(self, key: jax.Array, batch: int, memory: object = ()) -> tuple[jax.Array, jax.Array]:
        """(batch,) times with normal ln(sigma), and weights of 1."""
        sigma = jnp.exp(self.log_mean + self.log_std * jax.random.normal(key, (batch,)))
        return self.time_of_ratio(sigma), jnp.ones_like(sigma)

    def target(self, x0: jax.Array, eps: jax.Array, t: jax.Array) -> jax.Array:
        """(x0 - c_skip x) / c_out = (sigma x0 - sigma_data^2 eps) / (sigma_data sqrt(sigma^2 + sigma_data^2))."""
        sigma = expand(self.sigma(t), x0)
        return (sigma * x0 - self.sigma_data**2 * eps) / (self.sigma_data * jnp.hypot(sigma, self.sigma_data))

    def interpret(self, output: jax.Array, x: jax.Array, t: jax.Array) -> Prediction:
        """D and (x - D) / sigma, the latter without its cancellation at small sigma."""
        sigma, f = expand(self.sigma(t), x), output[..., : x.shape[-1]]
        total = jnp.hypot(sigma, self.sigma_data)
        x0 = (self.sigma_data / total) ** 2 * x + self.sigma_data * sigma / total * f
        return Prediction(x0=x0, eps=sigma / total**2 * x - self.sigma_data / total * f)

    def uncertainty_head(self) -> dict[str, Any]:
        """Its scale of times and number of features, where the uncertainty is learned."""
        return dict(time_scale=self.time_scale, channels=self.uncertainty_channels) if self.uncertainty else {}

    def output_channels(self, channels: int) -> int:
        """One more for the uncertainty."""
        return channels + self.uncertainty

    def error(
        self, output: jax.Array, x0: jax.Array, eps: jax.Array, x: jax.Array, t: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The mean square of F's error, under its own uncertainty where that is learned."""
        losses, aux = super().error(output[..., : x0.shape[-1]], x0, eps, x, t)
        if not self.uncertainty:
            return losses, aux
        u = jnp.mean(output[..., -1], axis=(1, 2))
        return losses / jnp.exp(u) + u, aux | {"uncertainty": u}


build = EDM
