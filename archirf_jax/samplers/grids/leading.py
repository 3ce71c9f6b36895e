"""Every (T // N)-th integer step of DDPM from 0 up, then the data; the noisiest steps are never visited."""

from __future__ import annotations

import dataclasses

import numpy as np

from archirf_jax.processes.base import Process
from archirf_jax.samplers.grids.base import Grid, at_steps, need_integer_steps


@dataclasses.dataclass(frozen=True)
class Leading(Grid):
    """The times of the module docstring."""

    def times(self, process: Process, steps: int) -> np.ndarray:
        """(N, 2) steps."""
        total = need_integer_steps("leading", process, steps)
        return at_steps(np.arange(steps)[::-1] * (total // steps), total)


build = Leading
