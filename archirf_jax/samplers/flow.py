"""Steps in flow coordinates: x / (alpha + sigma) over tau = sigma / (alpha + sigma), in which every process is a
rectified flow from data to noise with the velocity eps - x0 (see `processes.base`).

In them x0 that is known exactly is reached in one step of any size, nothing is infinite at either end, and Euler's
method is DDIM with eta = 0.
"""

from __future__ import annotations

import jax
import numpy as np

from archirf_jax.contracts import Prediction
from archirf_jax.errors import UserError
from archirf_jax.processes.base import Process


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


def is_consistent(grid: np.ndarray) -> bool:
    """Whether each step starts where the previous one ended and none goes beyond the data."""
    return bool(np.array_equal(grid[1:, 0], grid[:-1, 1]) and np.all(grid >= 0))


def check_consistent(grid: np.ndarray, solver: str) -> None:
    """Raise a UserError unless the solver can take the steps of the grid, which must fit together."""
    if not is_consistent(grid):
        raise UserError(
            "sample.solver.name", solver, "needs a grid whose steps fit together; 'archirf' is for euler, ddim and ddpm"
        )


def check_inside(grid: np.ndarray, solver: str) -> None:
    """Raise a UserError if a step goes beyond the data, where noise does not have a size."""
    if np.any(grid < 0):
        raise UserError(
            "sample.solver.name", solver, "cannot go beyond the data, as the grid 'archirf' does for flows; use euler"
        )
