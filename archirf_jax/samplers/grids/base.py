"""What grids share: pairs of times, starts within a grid, and integer steps."""

from __future__ import annotations

import dataclasses

import numpy as np

from archirf_jax.errors import UserError
from archirf_jax.processes.base import Process
from archirf_jax.processes.ddpm import DDPM

ROUNDING = 1e-9  # by which a strength and a time of the grid may differ


@dataclasses.dataclass(frozen=True)
class Grid:
    """The contract of a grid: its fields, and the steps for a process and their number."""

    @property
    def count(self) -> int | None:
        """The number of steps that the fields decide; None = any number."""
        return None

    def with_count(self, steps: int) -> Grid:
        """The same kind of grid with another `count`.

        Raises:
            UserError: there is none.
        """
        del steps
        return self

    def times(self, process: Process, steps: int) -> np.ndarray:
        """(N, 2) steps.

        Args:
            process: whose times these are.
            steps: N, 1 or more.

        Raises:
            UserError: the process does not have such a grid, or so many steps.
        """
        raise NotImplementedError


def pairs(times: np.ndarray) -> np.ndarray:
    """(N, 2) steps through N + 1 times."""
    return np.stack([times[:-1], times[1:]], axis=1)


def integer_steps(process: Process) -> int | None:
    """T of a process that was trained at T integer steps; None for others."""
    return process.steps if isinstance(process, DDPM) else None


def need_integer_steps(grid: str, process: Process, steps: int = 1) -> int:
    """T of a process with integer steps.

    Raises:
        UserError: the process does not have integer steps, or fewer than these.
    """
    total = integer_steps(process)
    if total is None:
        raise UserError(
            "sample.grid.name",
            grid,
            "counts the integer steps of ddpm, which this process does not have; use 'uniform'",
        )
    if steps > total:
        raise UserError("sample.steps", steps, f"is more than the {total} steps of the process")
    return total


def at_steps(places: np.ndarray, total: int, ends_at_data: bool = True) -> np.ndarray:
    """(N, 2) steps through falling integer steps and then to the data, or to the first integer step."""
    return pairs(np.append((places + 1) / total, 0.0 if ends_at_data else 1 / total))


def ending_at(grid: np.ndarray, t: float) -> np.ndarray:
    """The steps of a grid that start above time t, of which the last one may go beyond it.

    Raises:
        UserError: about "handover": there is none.
    """
    found = grid[grid[:, 0] > t + ROUNDING]
    if not len(found):
        what = f"leaves no step before it, as the grid starts at {grid[0, 0]:.4g}; hand over later"
        raise UserError("handover", t, what)
    return found


def starting_at(grid: np.ndarray, t: float) -> np.ndarray:
    """The steps of a grid from time t on: the first goes from t, or the grid's own start, to the grid's next time.

    Raises:
        UserError: every step of the grid starts above t, so no step remains.
    """
    if t < grid[-1, 0] - ROUNDING:
        raise UserError(
            "sample.strength", t, f"is below the last step of the grid, at {grid[-1, 0]:.4g}; take more steps"
        )
    first = int(np.argmax(grid[:, 0] <= t + ROUNDING))
    if first == 0 or abs(grid[first, 0] - t) <= ROUNDING:
        return grid[first:]
    return np.concatenate([[[t, grid[first - 1, 1]]], grid[first:]])
