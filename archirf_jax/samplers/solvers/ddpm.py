"""Ancestral sampling (Ho et al. 2020, Algorithm 2), for any process and any steps; one evaluation a step.

x(t_next) is drawn from q(x_next | x, x0) with the predicted x0; its variance is the process's choice. The last step
to the data adds no noise.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from archirf_jax.processes.base import Process
from archirf_jax.samplers.denoisers import Denoiser, LogProbability, classifier_gradient
from archirf_jax.samplers.straight import check_inside


class Posterior(NamedTuple):
    """q(x_next | x, x0) between two scalar times: factors of its mean, and the variances to choose between."""

    from_x0: jax.Array
    from_x: jax.Array
    small: jax.Array
    large: jax.Array


def posterior(process: Process, t: jax.Array, t_next: jax.Array) -> Posterior:
    """Ho et al. 2020, Eq. 6 and 7, written with alpha and sigma of any process.

    `small` is the posterior's variance, `large` that of the forward step from t_next to t (beta).
    """
    kept, ratio = process.alpha(t) / process.alpha(t_next), (process.sigma(t_next) / process.sigma(t)) ** 2
    large = jnp.maximum(process.sigma(t) ** 2 - kept**2 * process.sigma(t_next) ** 2, 0)
    return Posterior(
        from_x0=process.alpha(t_next) * large / process.sigma(t) ** 2,
        from_x=kept * ratio,
        small=large * ratio,
        large=large,
    )


@dataclasses.dataclass(frozen=True)
class Ddpm:
    """Ancestral sampling, with a classifier if one is given.

    Attributes:
        log_p: moves the mean by scale variance grad log p(y | x_t) (Dhariwal & Nichol 2021, Algorithm 1).
        scale: of the classifier's gradient.
    """

    log_p: LogProbability | None = None
    scale: float = 1.0

    def init(self, denoise: Denoiser, grid: np.ndarray, x: jax.Array) -> Any:
        """The denoiser's memory alone."""
        check_inside(grid, "ddpm")
        return denoise.init(x)

    def step(
        self, z: jax.Array, denoise: Denoiser, x: jax.Array, t: jax.Array, t_next: jax.Array, y: Any, memory: Any
    ) -> tuple[jax.Array, Any]:
        """x (B, H, W, C) at scalar time t -> x at t_next."""
        prediction, memory = denoise(x, t, y, memory)
        q = posterior(denoise.process, t, t_next)
        mean = q.from_x0 * prediction.x0 + q.from_x * x
        variance = denoise.process.step_variance(prediction, q.small, q.large)
        if self.log_p is not None:
            time = jnp.broadcast_to(t, x.shape[:1])
            mean = mean + self.scale * variance * classifier_gradient(denoise.process, self.log_p, x, time, y)
        return mean + jnp.where(t_next > 0, jnp.sqrt(variance), 0) * z, memory


build = Ddpm
