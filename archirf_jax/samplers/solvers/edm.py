"""EDM's stochastic sampler (Karras et al. 2022, Algorithm 2), for any process; Heun's method over sigma.

It runs on x / alpha over sigma / alpha, which EDM calls sigma; without churn it is the deterministic Algorithm 1.
Two evaluations a step, one in the last and in a step from pure noise, whose sigma is infinite: the limit of Euler's.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from archirf_jax.contracts import Condition, Denoiser
from archirf_jax.errors import UserError
from archirf_jax.samplers.flow import check_consistent
from archirf_jax.samplers.ranges import check_range

LARGEST_RISE = math.sqrt(2) - 1  # of sigma by churn, relative


@dataclasses.dataclass(frozen=True)
class Edm:
    """Heun's method with fresh noise before each step.

    Attributes:
        churn: S_churn of the paper: N times the relative rise of sigma in each of the N steps; 0 = deterministic.
        churn_min, churn_max: S_tmin and S_tmax, the sigmas between which noise is added.
        churn_noise: S_noise, the size of the added noise.
    """

    churn: float = 0.0
    churn_min: float = 0.0
    churn_max: float = math.inf
    churn_noise: float = 1.0

    def __post_init__(self) -> None:
        for name in ("churn", "churn_min", "churn_noise"):
            check_range(f"sample.solver.{name}", getattr(self, name), 0)
        if not self.churn_max >= self.churn_min:
            raise UserError("sample.solver.churn_max", self.churn_max, f"must be churn_min={self.churn_min} or more")

    def init(self, denoise: Denoiser, grid: np.ndarray, x: jax.Array) -> Any:
        """The denoiser's state, and the relative rise of sigma by churn."""
        check_consistent(grid, "edm")
        return denoise.init(x), jnp.asarray(min(self.churn / len(grid), LARGEST_RISE), x.dtype)

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
        inner, rise = solver_state
        process = denoise.process
        x, t = self._churn(process, noise, x, t, rise)
        here, inner = denoise(x, t, condition, inner)
        finite = process.alpha(t) > 0
        scaled = x / jnp.where(finite, process.alpha(t), 1)
        distance = jnp.where(finite, process.ratio(t_next) - process.ratio(t), 0)
        guess = jnp.where(finite, scaled + distance * here.eps, here.x0 + process.ratio(t_next) * here.eps)

        def correct() -> tuple[jax.Array, Any]:
            there, after = denoise(process.alpha(t_next) * guess, t_next, condition, inner)
            return scaled + distance * (here.eps + there.eps) / 2, after

        end, inner = jax.lax.cond((t_next > 0) & finite, correct, lambda: (guess, inner))
        return process.alpha(t_next) * end, (inner, rise)

    def _churn(
        self, process: Any, noise: jax.Array, x: jax.Array, t: jax.Array, rise: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """x and the time after noise was added."""
        if not self.churn:
            return x, t
        finite = process.alpha(t) > 0
        alpha, sigma = jnp.where(finite, process.alpha(t), 1), jnp.where(finite, process.ratio(t), 1)
        rise = jnp.where((self.churn_min <= sigma) & (sigma <= self.churn_max), rise, 0)
        later = process.time_of_ratio(sigma * (1 + rise))
        added = jnp.sqrt(jnp.maximum(process.ratio(later) ** 2 - sigma**2, 0))
        noisier = process.alpha(later) * (x / alpha + self.churn_noise * added * noise)
        return jnp.where(finite, noisier, x), jnp.where(finite, later, t)


build = Edm
