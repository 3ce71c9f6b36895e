"""Every (T // N)-th integer step of DDPM from the offset up, then the data; the noisiest steps are never visited."""

from __future__ import annotations

import dataclasses

import numpy as np

from archirf_jax.errors import UserError
from archirf_jax.processes.base import Process
from archirf_jax.samplers.grids.base import Grid, at_steps, need_integer_steps
from archirf_jax.samplers.ranges import check_range


@dataclasses.dataclass(frozen=True)
class Leading(Grid):
    """The times of the module docstring.

    Attributes:
        offset: the first step from 0 up that is visited; diffusers' steps_offset, which is 1 for Stable Diffusion.
        skipped: how many of the first steps are spaced with the others and left out; diffusers' DPM-Solver has 1.
        ends_at_data: the last step goes to the data; False = to step 0, which has a little noise, as Stable Diffusion
            is sampled (diffusers' set_alpha_to_one=False).
    """

    offset: int = 0
    skipped: int = 0
    ends_at_data: bool = True

    def __post_init__(self) -> None:
        for name in ("offset", "skipped"):
            check_range(f"sample.grid.{name}", getattr(self, name), 0)

    def times(self, process: Process, steps: int) -> np.ndarray:
        """(N, 2) steps."""
        total = need_integer_steps("leading", process, steps + self.skipped)
        places = (np.arange(steps)[::-1] + self.skipped) * (total // (steps + self.skipped)) + self.offset
        if places[0] >= total:
            what = f"leaves the {total} steps of the process; take fewer steps, or an offset of 0"
            raise UserError("sample.grid.offset", self.offset, what)
        return at_steps(places, total, self.ends_at_data)


build = Leading
