"""ADM's respacing of DDPM's integer steps, then the data; a grid named 250, 10,20,30 or ddim50 is this one."""

from __future__ import annotations

import dataclasses
import re

import numpy as np

from archirf_jax.errors import UserError
from archirf_jax.processes.base import Process
from archirf_jax.processes.respacing import respaced
from archirf_jax.samplers.grids.base import Grid, at_steps, need_integer_steps

PATTERN = re.compile(r"(ddim)?\d+|\d+(,\d+)+")


@dataclasses.dataclass(frozen=True)
class Respaced(Grid):
    """The steps that `processes.respacing` reads from a text; the text decides how many there are.

    Attributes:
        spacing: "250" steps from first to last, "10,20,30" in the thirds of the process, or every n-th: "ddim50".
    """

    spacing: str

    def __post_init__(self) -> None:
        if not PATTERN.fullmatch(self.spacing) or not self.count:
            raise UserError("sample.grid.spacing", self.spacing, "must be such as 250, 10,20,30 or ddim50")

    @property
    def count(self) -> int:
        """The number of steps."""
        return sum(map(int, self.spacing.removeprefix("ddim").split(",")))

    def with_count(self, steps: int) -> Respaced:
        """The same kind of spacing with so many steps; that of several parts has none."""
        if "," in self.spacing and steps != self.count:
            raise UserError(
                "sample.steps",
                steps,
                f"does not go with the grid {self.spacing}, which has {self.count} steps; name a grid",
            )
        prefix = "ddim" if self.spacing.startswith("ddim") else ""
        return self if steps == self.count else Respaced(f"{prefix}{steps}")

    def times(self, process: Process, steps: int) -> np.ndarray:
        """(N, 2) steps."""
        total = need_integer_steps(self.spacing, process)
        try:
            return at_steps(respaced(self.spacing, total)[::-1], total)
        except UserError as error:
            raise UserError("sample.grid.spacing", self.spacing, error.message) from error


build = Respaced
