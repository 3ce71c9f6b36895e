"""Euler-Maruyama on the reverse SDE in straight coordinates (SiT: Ma et al. 2024, Eq. 6); weak order 1, one evaluation.

dx = (v - w / 2 score) dtau + sqrt(w) dW has the marginals of the ODE for any w(tau) >= 0; the score is -eps / tau. Here
w = 2 eta^2 tau, so that nothing is infinite at either end. The last step to the data adds no noise.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from archirf_jax.errors import UserError
from archirf_jax.samplers.denoisers import Denoiser
from archirf_jax.samplers.straight import check_consistent, move, velocity


@dataclasses.dataclass(frozen=True)
class EulerMaruyama:
    """The step of the module docstring.

    Attributes:
        eta: strength of the noise, 0 (the ODE) or more.
    """

    eta: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.eta < math.inf:
            raise UserError(f"eta: {self.eta} must be a finite number, 0 or more, for euler_maruyama")

    def init(self, denoise: Denoiser, grid: np.ndarray, x: jax.Array) -> Any:
        """The denoiser's memory alone."""
        check_consistent(grid, "euler_maruyama")
        return denoise.init(x)

    def step(
        self, z: jax.Array, denoise: Denoiser, x: jax.Array, t: jax.Array, t_next: jax.Array, y: Any, memory: Any
    ) -> tuple[jax.Array, Any]:
        """x (B, H, W, C) at scalar time t -> x at t_next."""
        prediction, memory = denoise(x, t, y, memory)
        process = denoise.process
        eta = jnp.where(t_next > 0, self.eta, 0)
        tau, tau_next = process.flow_time(t), process.flow_time(t_next)
        moved = move(process, x, velocity(prediction) + eta**2 * prediction.eps, t, t_next)
        scale_next = process.alpha(t_next) + process.sigma(t_next)
        return moved + scale_next * eta * jnp.sqrt(2 * tau * (tau - tau_next)) * z, memory


build = EulerMaruyama
