"""DDPM's integer steps from T - 1 to 0, even and rounded, or even times from 1 to 1 / 1000; then the data."""

from __future__ import annotations

import dataclasses

import numpy as np

from archirf_jax.processes.base import Process
from archirf_jax.samplers.grids.base import Grid, at_steps, integer_steps, need_integer_steps, pairs
from archirf_jax.samplers.ranges import check_range

LAST = 1 / 1000  # the last time at which other processes ask the network


@dataclasses.dataclass(frozen=True)
class Linspace(Grid):
    """The times of the module docstring.

    Attributes:
        skipped: how many of the first integer steps are spaced with the others and left out; diffusers' DPM-Solver
            has 1.
    """

    skipped: int = 0

    def __post_init__(self) -> None:
        check_range("sample.grid.skipped", self.skipped, 0)

    def times(self, process: Process, steps: int) -> np.ndarray:
        """(N, 2) steps."""
        if integer_steps(process) is None:
            return pairs(np.append(np.linspace(1.0, LAST, steps), 0.0))
        spaced = steps + self.skipped
        total = need_integer_steps("linspace", process, spaced)
        places = np.linspace(0, total - 1, spaced) if spaced > 1 else np.asarray([total - 1])
        return at_steps(np.round(places)[self.skipped :][::-1].astype(int), total)


build = Linspace
