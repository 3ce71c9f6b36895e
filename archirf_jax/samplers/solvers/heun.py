"""Heun's method on the probability-flow ODE in flow coordinates: second order, two evaluations a step.

The last step to the data is Euler's, as no network is trained there: 2 N - 1 evaluations, and the order stays.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from archirf_jax.contracts import Condition, Denoiser
from archirf_jax.samplers.flow import check_consistent, move, velocity


@dataclasses.dataclass(frozen=True)
class Heun:
    """The mean of the velocities at both ends of Euler's step."""

    def init(self, denoise: Denoiser, grid: np.ndarray, x: jax.Array) -> Any:
        """The denoiser's state."""
        check_consistent(grid, "heun")
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
        prediction, solver_state = denoise(x, t, condition, solver_state)
        v = velocity(prediction)
        guess = move(denoise.process, x, v, t, t_next)

        def correct() -> tuple[jax.Array, Any]:
            there, after = denoise(guess, t_next, condition, solver_state)
            return move(denoise.process, x, (v + velocity(there)) / 2, t, t_next), after

        return jax.lax.cond(t_next > 0, correct, lambda: (guess, solver_state))


build = Heun
