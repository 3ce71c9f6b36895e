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
        last: where times are even, the last one before the shift, from which a step leads to the data, above 0 and at
            most 1; None = as far from the data as each is from the next.
    """

    shift: float = 1.0
    sigmas: tuple[float, ...] | None = None
    last: float | None = None

    def __post_init__(self) -> None:
        check_range("sample.grid.shift", self.shift, 0, above=True)
        check_sigmas(self.sigmas)
        check_last(self.last)

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
        return pairs(shift_time(self._before(steps), self.shift))

    def _before(self, steps: int) -> np.ndarray:
        if self.sigmas is None and self.last is None:
            return np.linspace(1.0, 0.0, steps + 1)
        return np.append(self.sigmas or np.linspace(1.0, self.last or 0.0, steps), 0.0)


def check_last(last: float | None) -> None:
    """Raise a UserError unless the last of even times is above 0 and at most 1, or not given."""
    if last is not None:
        check_range("sample.grid.last", last, 0, 1, above=True)


def check_sigmas(sigmas: tuple[float, ...] | None) -> None:
    """Raise a UserError unless there are none or they fall, the first at most 1 and the last above 0."""
    if sigmas is None:
        return
    places = (1.0, *sigmas, 0.0)
    falling = all(late < early for early, late in zip(places[1:], places[2:], strict=False)) and places[0] >= places[1]
    if not sigmas or not falling:
        raise UserError("sample.grid.sigmas", sigmas, "must be numbers that fall, from at most 1 and all above 0")


build = Shifted
