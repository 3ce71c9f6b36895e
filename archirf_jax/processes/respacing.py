"""Which of a process's integer steps are visited: the strings of ADM (Nichol & Dhariwal 2021, Sec. 4)."""

from __future__ import annotations

import numpy as np

from archirf_jax.errors import UserError


def respaced(text: str, total: int, field: str = "sample.grid") -> np.ndarray:
    """Rising int64 steps of 0..total-1.

    Args:
        text: "250": 250 steps from first to last, as even as rounding allows; "10,20,30": so many in each third;
            "ddim50": every n-th step from 0, where that makes exactly 50.
        total: how many there are.
        field: of the configuration, for errors.

    Raises:
        UserError: text of another form, or more steps than there are.
    """
    if text.startswith("ddim") and text[4:].isdecimal():
        return _every(int(text[4:]), total, text, field)
    parts = text.split(",")
    if not all(part.isdecimal() and int(part) for part in parts):
        raise UserError(field, text, "must be a number such as 250, numbers such as 10,20,30, or such as ddim50")
    counts = [int(part) for part in parts]
    sizes = [total // len(counts) + (i < total % len(counts)) for i in range(len(counts))]
    steps: list[int] = []
    for first, size, count in zip(np.cumsum([0, *sizes]), sizes, counts, strict=False):
        if count > size:
            raise UserError(field, text, f"asks for {count} of {size} steps; at most {size} are there")
        stride = (size - 1) / (count - 1) if count > 1 else 1.0
        steps += [int(first) + round(place) for place in np.cumsum([0.0, *[stride] * (count - 1)])]
    return np.asarray(steps)


def _every(count: int, total: int, text: str, field: str) -> np.ndarray:
    possible = {len(range(0, total, stride)): stride for stride in range(total, 0, -1)}
    if count not in possible:
        closest = min(possible, key=lambda other: abs(other - count))
        raise UserError(field, text, f"cannot be cut from {total} steps by one stride; ddim{closest} can")
    return np.arange(0, total, possible[count])
