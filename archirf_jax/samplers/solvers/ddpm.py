"""Ancestral sampling (Ho et al. 2020, Algorithm 2), for any process and any steps; one evaluation a step.

x(t_next) is drawn from q(x_next | x, x0) with the predicted x0; the process chooses its variance. The last step
to the data adds no noise.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from archirf_jax.contracts import Condition, Denoiser
from archirf_jax.processes.base import Process
from archirf_jax.samplers.denoisers import LogProbability, classifier_gradient
from archirf_jax.samplers.flow import check_inside


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
        log_p: moves the mean by classifier_scale variance grad log p(condition | x_t) (Dhariwal & Nichol 2021, Alg. 1).
        classifier_scale: 0 is off.
    """

    log_p: LogProbability | None = None
    classifier_scale: float = 1.0

    def init(self, denoise: Denoiser, grid: np.ndarray, x: jax.Array) -> Any:
        """The denoiser's state."""
        check_inside(grid, "ddpm")
        return denoise.init(x)

    def step(
        self,
        noise: jax.Array,
        denoise: Denoiser,
        x: jax.Array,
        t: jax.Array,
        t_next: jax.Array,
        condition: Condition,
        solver_state: Any,
    ) -> tuple[jax.Array, Any]:
        """x (B, ...) at scalar time t -> x at t_next."""
        prediction, solver_state = denoise(x, t, condition, solver_state)
        q = posterior(denoise.process, t, t_next)
        mean = q.from_x0 * prediction.x0 + q.from_x * x
        variance = denoise.process.step_variance(prediction, q.small, q.large)
        if self.log_p is not None:
            time = jnp.broadcast_to(t, x.shape[:1])
            mean = mean + self.classifier_scale * variance * classifier_gradient(self.log_p, x, time, condition)
        return mean + jnp.where(t_next > 0, jnp.sqrt(variance), 0) * noise, solver_state


build = Ddpm
