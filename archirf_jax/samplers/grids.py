"""The times a sampler visits: N + 1 of them for N steps, from 1 (noise) down to 0 (data), float64 on the host."""

from __future__ import annotations

import numpy as np

from archirf_jax.errors import UserError
from archirf_jax.processes.rectified_flow import shift_time


def linspace(steps: int, shift: float = 1.0) -> np.ndarray:
    """(steps + 1,) evenly spaced times from 1 to 0, then moved by `shift_time` (SD3, Sec. 5.3.2).

    Raises:
        UserError: steps or shift not above 0.
    """
    if steps < 1:
        raise UserError(f"steps: {steps} must be at least 1")
    if not shift > 0:
        raise UserError(f"shift: {shift} must be above 0")
    return shift_time(np.linspace(1.0, 0.0, steps + 1), shift)
