"""The original project's steps, kept for comparison: they do not fit together."""

from __future__ import annotations

import dataclasses

import numpy as np

from archirf_jax.errors import UserError
from archirf_jax.processes.base import Process
from archirf_jax.processes.rectified_flow import RectifiedFlow
from archirf_jax.samplers.grids.base import Grid, integer_steps, need_integer_steps, pairs

DEFINED_AT_DATA = ("velocity", "v")  # predictions from which the noise follows where x has none


@dataclasses.dataclass(frozen=True)
class Archirf(Grid):
    """Flows: N times from 1 to 0 and steps of 1 / N, so that the network is asked about later times than x has. DDPM:
    every (T // N)-th step from 1 up, without the last one to the data: N - 1 steps, and noise remains.
    """

    def times(self, process: Process, steps: int) -> np.ndarray:
        """(N, 2) or (N - 1, 2) steps; the network of a flow must have an answer at t = 0."""
        if steps < 2:
            raise UserError("sample.steps", steps, "must be 2 or more for the grid 'archirf'")
        if integer_steps(process) is None:
            return self._of_flow(process, steps)
        total = need_integer_steps("archirf", process, steps)
        places = 1 + np.arange(steps)[::-1] * (total // steps)
        return pairs((np.minimum(places, total - 1) + 1) / total)

    def _of_flow(self, process: Process, steps: int) -> np.ndarray:
        if not isinstance(process, RectifiedFlow) or process.path == "vp" or process.prediction not in DEFINED_AT_DATA:
            raise UserError(
                "sample.grid.name",
                "archirf",
                "asks the network about t=0, which only ddpm and rectified_flow with path='linear' or 'gvp' and "
                f"prediction={' or '.join(map(repr, DEFINED_AT_DATA))} allow; use 'uniform'",
            )
        times = np.linspace(1.0, 0.0, steps)
        return np.stack([times, times - 1 / steps], axis=1)


build = Archirf
