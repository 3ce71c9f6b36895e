"""DDIM (Song et al. 2020, "Denoising Diffusion Implicit Models", Eq. 12 and 16), for any process.

One evaluation a step:

    x(t_next) = alpha x0 + sqrt(sigma^2 - s^2) eps + s z,   s = eta times the deviation of q(x_next | x, x0)

eta = 0 is deterministic and the same as Euler; eta = 1 is ancestral sampling with the posterior's variance.
On x / alpha over sigma / alpha that is Euler's step to a lower level and noise back to the next: Euler ancestral.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from archirf_jax.contracts import Condition, Denoiser
from archirf_jax.samplers.flow import check_inside
from archirf_jax.samplers.ranges import check_range
from archirf_jax.samplers.solvers.ddpm import posterior


@dataclasses.dataclass(frozen=True)
class Ddim:
    """The step of the module docstring.

    Attributes:
        eta: 0 to 1, how much of the ancestral noise is added.
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        check_range("sample.solver.eta", self.eta, 0, 1)

    def init(self, denoise: Denoiser, grid: np.ndarray, x: jax.Array) -> Any:
        """The denoiser's state."""
        if self.eta:
            check_inside(grid, "ddim")
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
        process = denoise.process
        if not self.eta:
            prediction, solver_state = denoise(x, t, condition, solver_state, s=t_next)
            return process.alpha(t_next) * prediction.x0 + process.sigma(t_next) * prediction.eps, solver_state
        prediction, solver_state = denoise(x, t, condition, solver_state)
        variance = self.eta**2 * posterior(process, t, t_next).small
        rest = jnp.sqrt(jnp.maximum(process.sigma(t_next) ** 2 - variance, 0))
        return process.alpha(t_next) * prediction.x0 + rest * prediction.eps + jnp.sqrt(variance) * noise, solver_state


build = Ddim
