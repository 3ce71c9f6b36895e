"""Euler's method on the probability-flow ODE: first order, one evaluation a step.

x(t_next) = alpha(t_next) x0 + sigma(t_next) eps. For rectified flow this is x + (t_next - t) v, which
is exact where v is a network's mean velocity between t and s = t_next.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from archirf_jax.contracts import Condition, Denoiser


@dataclasses.dataclass(frozen=True)
class Euler:
    """The step of the module docstring."""

    def init(self, denoise: Denoiser, grid: np.ndarray, x: jax.Array) -> Any:
        """The denoiser's state."""
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
        """x (B, ...) at scalar time t -> x at t_next; it does not use the noise."""
        prediction, solver_state = denoise(x, t, condition, solver_state, s=t_next)
        process = denoise.process
        return process.alpha(t_next) * prediction.x0 + process.sigma(t_next) * prediction.eps, solver_state


build = Euler
