"""Checks of numbers, called where the fields are defined."""

from __future__ import annotations

import math
from typing import Any

import jax

from archirf_jax.errors import UserError


def check_range(field: str, value: Any, low: float, high: float = math.inf, *, above: bool = False) -> None:
    """Raise a UserError unless `value` is a finite number from low (or above it) to high; traced values pass.

    Args:
        field: its name in a configuration.
        value: what was given.
        low: smallest value.
        high: largest value.
        above: low itself is not allowed.
    """
    if isinstance(value, jax.core.Tracer):
        return
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or not low <= value <= high or (above and value == low):
        start = f"above {low:g}" if above else f"{low:g} or more"
        wanted = "a finite number" + ("" if low == -math.inf else f", {start}")
        raise UserError(field, value, f"must be {wanted}{f' and at most {high:g}' if high < math.inf else ''}")
