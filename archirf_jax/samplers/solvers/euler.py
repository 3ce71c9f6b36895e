"""Euler's method on the probability-flow ODE: first order, one evaluation a step.

x(t_next) = alpha(t_next) x0 + sigma(t_next) eps. For rectified flow this is x + (t_next - t) v.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from archirf_jax.samplers.denoisers import Denoiser


@dataclasses.dataclass(frozen=True)
class Euler:
    """The step of the module docstring."""

    def init(self, denoise: Denoiser, grid: np.ndarray, x: jax.Array) -> Any:
        """The denoiser's memory alone."""
        return denoise.init(x)

    def step(
        self, z: jax.Array, denoise: Denoiser, x: jax.Array, t: jax.Array, t_next: jax.Array, y: Any, memory: Any
    ) -> tuple[jax.Array, Any]:
        """x (B, H, W, C) at scalar time t -> x at t_next; the noise is unused."""
        prediction, memory = denoise(x, t, y, memory)
        process = denoise.process
        return process.alpha(t_next) * prediction.x0 + process.sigma(t_next) * prediction.eps, memory


build = Euler
