"""Even or given times from noise to data, moved towards noise by SD3's shift (Esser et al. 2024, Eq. 23)."""

from __future__ import annotations

import dataclasses

import numpy as np

from archirf_jax.errors import UserError
from archirf_jax.processes.base import Process
from archirf_jax.processes.times import shift_time
from archirf_jax.samplers.grids.base import Grid, pairs
from archirf_jax.samplers.ranges import check_range


@dataclasses.dataclass(frozen=True)
class Shifted(Grid):
    """The times of the module docstring.

    Attributes:
        shift: above 0; 1 leaves the times as they are, SD3 uses 3 at 1024x1024.
        sigmas: the times before the shift (a rectified flow's sigma is its time), falling, at most 1 and above 0; the
            data follows, so there are as many steps as sigmas. None = even from 1, in any number of steps.
    """

    shift: float = 1.0
    sigmas: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        check_range("sample.grid.shift", self.shift, 0, above=True)
        check_sigmas(self.sigmas)

    @property
    def count(self) -> int | None:
        """The number of the sigmas that are given."""
        return None if self.sigmas is None else len(self.sigmas)

    def with_count(self, steps: int) -> Shifted:
        """The same grid, which has no other number of steps where its sigmas are given."""
        if self.count not in (None, steps):
            raise UserError(
                "sample.steps", steps, f"does not go with {self.count} sigmas; give as many, or leave it out"
            )
        return self

    def times(self, process: Process, steps: int) -> np.ndarray:
        """(N, 2) steps."""
        before = np.linspace(1.0, 0.0, steps + 1) if self.sigmas is None else np.append(self.sigmas, 0.0)
        return pairs(shift_time(before, self.shift))


def check_sigmas(sigmas: tuple[float, ...] | None) -> None:
    """Raise a UserError unless there are none or they fall, the first at most 1 and the last above 0."""
    if sigmas is None:
        return
    places = (1.0, *sigmas, 0.0)
    falling = all(late < early for early, late in zip(places[1:], places[2:], strict=False)) and places[0] >= places[1]
    if not sigmas or not falling:
        raise UserError("sample.grid.sigmas", sigmas, "must be numbers that fall, from at most 1 and all above 0")


build = Shifted
