"""Euler-Maruyama on the reverse SDE in flow coordinates (SiT: Ma et al. 2024, Eq. 6); weak order 1, one evaluation.

dx = (v - w / 2 score) dtau + sqrt(w) dW has the marginals of the ODE for any w(tau) >= 0; the score is -eps / tau. Here
w = 2 eta^2 tau, so that nothing is infinite at either end. The last step to the data adds no noise.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from archirf_jax.contracts import Condition, Denoiser
from archirf_jax.samplers.flow import check_consistent, move, velocity
from archirf_jax.samplers.ranges import check_range


@dataclasses.dataclass(frozen=True)
class EulerMaruyama:
    """The step of the module docstring.

    Attributes:
        eta: strength of the noise, 0 (the ODE) or more.
    """

    eta: float = 1.0

    def __post_init__(self) -> None:
        check_range("sample.solver.eta", self.eta, 0)

    def init(self, denoise: Denoiser, grid: np.ndarray, x: jax.Array) -> Any:
        """The denoiser's state."""
        check_consistent(grid, "euler_maruyama")
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
        prediction, solver_state = denoise(x, t, condition, solver_state, s=None if self.eta else t_next)
        process = denoise.process
        eta = jnp.where(t_next > 0, self.eta, 0)
        tau, tau_next = process.flow_time(t), process.flow_time(t_next)
        moved = move(process, x, velocity(prediction) + eta**2 * prediction.eps, t, t_next)
        scale_next = process.alpha(t_next) + process.sigma(t_next)
        return moved + scale_next * eta * jnp.sqrt(2 * tau * (tau - tau_next)) * noise, solver_state


build = EulerMaruyama
