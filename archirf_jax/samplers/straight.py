"""Steps in straight coordinates: x / (alpha + sigma) over tau = sigma / (alpha + sigma), where every process is a
rectified flow from image to noise with velocity eps - x0 (see `processes.base`).

An image that is known exactly is reached in one step of any size, nothing is infinite at either end, and Euler's method
is DDIM with eta 0.
"""

from __future__ import annotations

import jax
import numpy as np

from archirf_jax.errors import UserError
from archirf_jax.processes.base import Prediction, Process


def velocity(prediction: Prediction) -> jax.Array:
    """eps - x0."""
    return prediction.eps - prediction.x0


def move(process: Process, x: jax.Array, v: jax.Array, t: jax.Array, t_next: jax.Array) -> jax.Array:
    """x at scalar time t, carried to t_next by the velocity v."""
    scale, scale_next = process.alpha(t) + process.sigma(t), process.alpha(t_next) + process.sigma(t_next)
    return scale_next * (x / scale + (process.flow_time(t_next) - process.flow_time(t)) * v)


def halfway(process: Process, t: jax.Array, t_next: jax.Array) -> jax.Array:
    """The time at which tau is the mean of its values at t and t_next."""
    tau = (process.flow_time(t) + process.flow_time(t_next)) / 2
    return process.time_of_ratio(tau / (1 - tau))


def check_consistent(grid: np.ndarray, solver: str) -> None:
    """Raise a UserError unless each step starts where the one before ended and none goes beyond the data."""
    if not np.array_equal(grid[1:, 0], grid[:-1, 1]) or np.any(grid < 0):
        raise UserError(
            f"solver: {solver} needs a grid whose steps fit together; 'archirf' is for euler, ddim and ddpm"
        )


def check_inside(grid: np.ndarray, solver: str) -> None:
    """Raise a UserError if a step goes beyond the data, where noise has no size."""
    if np.any(grid < 0):
        raise UserError(f"solver: {solver} cannot go beyond the data, as 'archirf' does for flows; use euler")
