"""Even times from 1 to 0, moved towards noise by SD3's shift (Esser et al. 2024, Eq. 23)."""

from __future__ import annotations

import dataclasses

import numpy as np

from archirf_jax.processes.base import Process
from archirf_jax.processes.times import shift_time
from archirf_jax.samplers.grids.base import Grid, pairs
from archirf_jax.samplers.ranges import check_range


@dataclasses.dataclass(frozen=True)
class Shifted(Grid):
    """The times of the module docstring.

    Attributes:
        shift: above 0; 1 leaves the times even, SD3 uses 3 at 1024x1024.
    """

    shift: float = 1.0

    def __post_init__(self) -> None:
        check_range("sample.grid.shift", self.shift, 0, above=True)

    def times(self, process: Process, steps: int) -> np.ndarray:
        """(N, 2) steps."""
        return pairs(shift_time(np.linspace(1.0, 0.0, steps + 1), self.shift))


build = Shifted
