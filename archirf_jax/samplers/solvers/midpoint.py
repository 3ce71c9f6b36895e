"""The midpoint method on the probability-flow ODE in flow coordinates: second order, two evaluations a step.

The network is never asked about the data's end, so every step is alike.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from archirf_jax.contracts import Condition, Denoiser
from archirf_jax.samplers.flow import check_consistent, halfway, move, velocity


@dataclasses.dataclass(frozen=True)
class Midpoint:
    """The velocity half way along Euler's step."""

    def init(self, denoise: Denoiser, grid: np.ndarray, x: jax.Array) -> Any:
        """The denoiser's state."""
        check_consistent(grid, "midpoint")
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
        process = denoise.process
        middle = halfway(process, t, t_next)
        here, solver_state = denoise(x, t, condition, solver_state)
        there, solver_state = denoise(move(process, x, velocity(here), t, middle), middle, condition, solver_state)
        return move(process, x, velocity(there), t, t_next), solver_state


build = Midpoint
