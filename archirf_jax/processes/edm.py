"""EDM (Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models").

    x = x0 + sigma eps
    D(x, sigma) = c_skip x + c_out F(c_in x, ln(sigma) / 4)       a wrapper around any network F

F learns (x0 - c_skip x) / c_out, which has variance 1 at every sigma, so that the paper's weights c_out^-2 become 1.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp

from archirf_jax.contracts import Prediction
from archirf_jax.errors import UserError
from archirf_jax.processes.base import Process, Times, backend, check_positive, expand


@dataclasses.dataclass(frozen=True)
class EDM(Process):
    """Noise of growing size on an image of fixed size.

    t is sigma / (1 + sigma), scaled to be 1 at sigma_max.

    Attributes:
        sigma_data: standard deviation of the images.
        sigma_min: smallest sigma that is sampled with.
        sigma_max: sigma at t = 1.
        time_scale: the network is given time_scale ln(sigma) / 4; 1 as published, more for networks whose time
            embedding expects numbers up to 1000.

    Raises:
        UserError: a field out of its range.
    """

    sigma_data: float = 0.5
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    time_scale: float = 1.0

    def __post_init__(self) -> None:
        check_positive("process", self, "sigma_data", "sigma_min", "sigma_max", "time_scale")
        if self.sigma_min >= self.sigma_max:
            raise UserError("process.sigma_min", self.sigma_min, f"must be below sigma_max={self.sigma_max}")

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
        """time_scale ln(sigma) / 4, at the data that of a hundredth of sigma_min."""
        xp = backend(t)
        return self.time_scale / 4 * xp.log(xp.maximum(self.sigma(t), self.sigma_min / 100))

    def network_input(self, x: jax.Array, t: jax.Array) -> jax.Array:
        """c_in x, of variance 1."""
        return x / expand(jnp.hypot(self.sigma(t), self.sigma_data), x)

    def target(self, x0: jax.Array, eps: jax.Array, t: jax.Array) -> jax.Array:
        """(x0 - c_skip x) / c_out = (sigma x0 - sigma_data^2 eps) / (sigma_data sqrt(sigma^2 + sigma_data^2))."""
        sigma = expand(self.sigma(t), x0)
        return (sigma * x0 - self.sigma_data**2 * eps) / (self.sigma_data * jnp.hypot(sigma, self.sigma_data))

    def interpret(self, output: jax.Array, x: jax.Array, t: jax.Array) -> Prediction:
        """D and (x - D) / sigma, the latter without its cancellation at small sigma."""
        sigma = expand(self.sigma(t), x)
        total = jnp.hypot(sigma, self.sigma_data)
        x0 = (self.sigma_data / total) ** 2 * x + self.sigma_data * sigma / total * output
        return Prediction(x0=x0, eps=sigma / total**2 * x - self.sigma_data / total * output)


build = EDM
