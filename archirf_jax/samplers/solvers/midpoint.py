"""The midpoint method on the probability-flow ODE in straight coordinates: second order, two evaluations a step.

The network is never asked about the data's end, so every step is alike.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from archirf_jax.samplers.denoisers import Denoiser
from archirf_jax.samplers.straight import check_consistent, halfway, move, velocity


@dataclasses.dataclass(frozen=True)
class Midpoint:
    """The velocity half way along Euler's step."""

    def init(self, denoise: Denoiser, grid: np.ndarray, x: jax.Array) -> Any:
        """The denoiser's memory alone."""
        check_consistent(grid, "midpoint")
        return denoise.init(x)

    def step(
        self, z: jax.Array, denoise: Denoiser, x: jax.Array, t: jax.Array, t_next: jax.Array, y: Any, memory: Any
    ) -> tuple[jax.Array, Any]:
        """x (B, H, W, C) at scalar time t -> x at t_next; the noise is unused."""
        process = denoise.process
        middle = halfway(process, t, t_next)
        here, memory = denoise(x, t, y, memory)
        there, memory = denoise(move(process, x, velocity(here), t, middle), middle, y, memory)
        return move(process, x, velocity(there), t, t_next), memory


build = Midpoint
