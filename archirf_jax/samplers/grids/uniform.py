"""Even times from 1 to 0."""

from __future__ import annotations

import dataclasses

import numpy as np

from archirf_jax.processes.base import Process
from archirf_jax.samplers.grids.base import Grid, pairs


@dataclasses.dataclass(frozen=True)
class Uniform(Grid):
    """The times of the module docstring."""

    def times(self, process: Process, steps: int) -> np.ndarray:
        """(N, 2) steps."""
        return pairs(np.linspace(1.0, 0.0, steps + 1))


build = Uniform
