"""DDPM's integer steps from T - 1 to 0, even and rounded, or even times from 1 to 1 / 1000; then the data."""

from __future__ import annotations

import dataclasses

import numpy as np

from archirf_jax.processes.base import Process
from archirf_jax.samplers.grids.base import Grid, at_steps, integer_steps, need_integer_steps, pairs

LAST = 1 / 1000  # the last time at which other processes ask the network


@dataclasses.dataclass(frozen=True)
class Linspace(Grid):
    """The times of the module docstring."""

    def times(self, process: Process, steps: int) -> np.ndarray:
        """(N, 2) steps."""
        if integer_steps(process) is None:
            return pairs(np.append(np.linspace(1.0, LAST, steps), 0.0))
        total = need_integer_steps("linspace", process, steps)
        places = np.linspace(0, total - 1, steps) if steps > 1 else np.asarray([total - 1])
        return at_steps(np.round(places)[::-1].astype(int), total)


build = Linspace
