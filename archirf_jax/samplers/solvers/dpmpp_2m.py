"""DPM-Solver++ 2M (Lu et al. 2022, "DPM-Solver++", Algorithm 2), for any process: second order, one evaluation a step.

x0 is extrapolated linearly in lambda = log(alpha / sigma) from this evaluation and the one before. The first
step, and any from pure noise or to the data, where lambda is infinite, are first order.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from archirf_jax.contracts import Condition, Denoiser
from archirf_jax.samplers.flow import check_consistent


@dataclasses.dataclass(frozen=True)
class DpmSolver:
    """Keeps the x0 of the previous evaluation and the step in lambda that followed it."""

    def init(self, denoise: Denoiser, grid: np.ndarray, x: jax.Array) -> Any:
        """The denoiser's state, no x0 yet, and an infinite step."""
        check_consistent(grid, "dpmpp_2m")
        return denoise.init(x), jnp.zeros_like(x), jnp.full((), jnp.inf, x.dtype)

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
        """x (B, ...) at scalar time t -> x at t_next; it does not use the noise."""
        inner, before, h_before = solver_state
        prediction, inner = denoise(x, t, condition, inner)
        process = denoise.process
        h = jnp.log(process.ratio(t)) - jnp.log(process.ratio(t_next))
        usable = jnp.isfinite(h) & jnp.isfinite(h_before)
        lead = jnp.where(usable, h / jnp.where(usable, 2 * h_before, 1), 0)
        x0 = prediction.x0 + lead * (prediction.x0 - before)
        x_next = process.sigma(t_next) / process.sigma(t) * x - process.alpha(t_next) * jnp.expm1(-h) * x0
        return x_next, (inner, prediction.x0, h)


build = DpmSolver
