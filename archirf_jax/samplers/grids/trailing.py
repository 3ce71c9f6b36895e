"""Every (T / N)-th integer step of DDPM from T - 1 down, then the data."""

from __future__ import annotations

import dataclasses

import numpy as np

from archirf_jax.processes.base import Process
from archirf_jax.samplers.grids.base import Grid, at_steps, need_integer_steps


@dataclasses.dataclass(frozen=True)
class Trailing(Grid):
    """The times of the module docstring.

    Attributes:
        ends_at_data: as of the grid `leading`.
    """

    ends_at_data: bool = True

    def times(self, process: Process, steps: int) -> np.ndarray:
        """(N, 2) steps."""
        total = need_integer_steps("trailing", process, steps)
        # Counted down from T: other orders of the same sum round halves to other steps than the published ones.
        return at_steps(np.round(np.arange(total, 0, -total / steps)[:steps]).astype(int) - 1, total, self.ends_at_data)


build = Trailing
