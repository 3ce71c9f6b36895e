"""Even or given times, moved towards noise by e^mu, where mu is linear in the number of the image's tokens.

The line goes through (base_image_seq_len, base_shift) and (max_image_seq_len, max_shift), and beyond both. It and its
numbers are those of FLUX.1 (Black Forest Labs 2024) and of the published configurations of its sampler, whose names
these fields have. Under t' = e^mu / (e^mu + 1 / t - 1) the log-odds of noise rise by mu: it is SD3's shift e^mu (Esser
et al. 2024, Eq. 23), there the root of the ratio of two numbers of pixels.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from archirf_jax.errors import UserError
from archirf_jax.processes.base import Process
from archirf_jax.samplers.grids.base import Grid
from archirf_jax.samplers.grids.shifted import Shifted, check_last, check_sigmas
from archirf_jax.samplers.ranges import check_range

LARGEST_MU = 12.0  # beyond it float32, in which solvers step, no longer tells the first of 50 times from 1


@dataclasses.dataclass(frozen=True)
class DynamicShift(Grid):
    """The times of the module docstring.

    Attributes:
        image_seq_len: tokens of an image to draw, 1 or more: (size / patch)^2, for latents of the latents' size.
        base_shift, max_shift: mu at the two numbers of tokens that follow.
        base_image_seq_len, max_image_seq_len: 1 or more, the first below the second.
        sigmas, last: the times before the shift, as of the grid `shifted`.

    Raises:
        UserError: a field out of its range, or a mu beyond 12 or -12.
    """

    image_seq_len: int
    base_shift: float = 0.5
    max_shift: float = 1.15
    base_image_seq_len: int = 256
    max_image_seq_len: int = 4096
    sigmas: tuple[float, ...] | None = None
    last: float | None = None

    def __post_init__(self) -> None:
        for name in ("image_seq_len", "base_image_seq_len", "max_image_seq_len"):
            check_range(f"sample.grid.{name}", getattr(self, name), 1)
        for name in ("base_shift", "max_shift"):
            check_range(f"sample.grid.{name}", getattr(self, name), -math.inf)
        if self.max_image_seq_len <= self.base_image_seq_len:
            above = f"must be above base_image_seq_len={self.base_image_seq_len}"
            raise UserError("sample.grid.max_image_seq_len", self.max_image_seq_len, above)
        if abs(self.mu) > LARGEST_MU:
            what = f"gives mu={self.mu:.4g}, which must be at most {LARGEST_MU:g} and no less than {-LARGEST_MU:g}"
            raise UserError("sample.grid.image_seq_len", self.image_seq_len, what)
        check_sigmas(self.sigmas)
        check_last(self.last)

    @property
    def mu(self) -> float:
        """The rise of the log-odds of noise."""
        share = (self.image_seq_len - self.base_image_seq_len) / (self.max_image_seq_len - self.base_image_seq_len)
        return self.base_shift + share * (self.max_shift - self.base_shift)

    @property
    def count(self) -> int | None:
        """The number of the sigmas that are given."""
        return self._shifted.count

    def with_count(self, steps: int) -> DynamicShift:
        """The same grid, which has no other number of steps where its sigmas are given."""
        self._shifted.with_count(steps)
        return self

    def times(self, process: Process, steps: int) -> np.ndarray:
        """(N, 2) steps."""
        return self._shifted.times(process, steps)

    @property
    def _shifted(self) -> Shifted:
        return Shifted(math.exp(self.mu), self.sigmas, self.last)


build = DynamicShift
