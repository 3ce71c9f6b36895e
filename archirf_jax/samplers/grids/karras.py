"""Levels even in sigma^(1 / rho), with sigma for sigma / alpha, then the data (EDM: Karras et al. 2022, Eq. 5)."""

from __future__ import annotations

import dataclasses

import numpy as np

from archirf_jax.errors import UserError
from archirf_jax.processes.base import Process
from archirf_jax.samplers.grids.base import Grid, integer_steps, pairs
from archirf_jax.samplers.ranges import check_range

SIGMAS = (0.002, 80.0)  # EDM's smallest and largest


@dataclasses.dataclass(frozen=True)
class Karras(Grid):
    """The levels of the module docstring; those of a process with integer steps stay within its own.

    Attributes:
        rho: above 0; larger values take more of the steps near the data.
        sigma_min: smallest sigma / alpha before the data; None = the process's own, or EDM's 0.002.
        sigma_max: largest sigma / alpha; None = the process's own, or EDM's 80. Integer steps that end at pure noise
            are then visited from there: it takes the place of the first level.
    """

    rho: float = 7.0
    sigma_min: float | None = None
    sigma_max: float | None = None

    def __post_init__(self) -> None:
        check_range("sample.grid.rho", self.rho, 0, above=True)
        for name in ("sigma_min", "sigma_max"):
            if getattr(self, name) is not None:
                check_range(f"sample.grid.{name}", getattr(self, name), 0, above=True)

    def times(self, process: Process, steps: int) -> np.ndarray:
        """(N, 2) steps."""
        times = np.append(process.time_of_ratio(self.sigmas(process, steps)), 0.0)
        if self.sigma_max is None and _ends_at_pure_noise(process):
            times[0] = 1.0
        return pairs(times)

    def sigmas(self, process: Process, steps: int) -> np.ndarray:
        """(N,) falling sigma / alpha."""
        low = getattr(process, "sigma_min", SIGMAS[0]) if self.sigma_min is None else self.sigma_min
        high = getattr(process, "sigma_max", SIGMAS[1]) if self.sigma_max is None else self.sigma_max
        total = integer_steps(process)
        if total is not None:
            low = max(low, float(process.ratio(np.asarray(1 / total))))
            high = high if _ends_at_pure_noise(process) else min(high, float(process.ratio(np.asarray(1.0))))
        if low >= high:
            raise UserError("sample.grid.sigma_min", low, f"must be below the largest sigma / alpha, {high:g}")
        return np.linspace(high ** (1 / self.rho), low ** (1 / self.rho), steps) ** self.rho


def _ends_at_pure_noise(process: Process) -> bool:
    return integer_steps(process) is not None and float(process.alpha(np.asarray(1.0))) == 0


build = Karras
