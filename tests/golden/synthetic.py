"""Parameters that a golden case does not store, because each follows from its name and shape."""

from __future__ import annotations

import zlib

import numpy as np


def synthetic(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The float32 array of `shape` that belongs to a parameter called `name`, from a generator seeded by crc32(name).

    Two and more dimensions: normal / sqrt(fan_in) with fan_in = prod(shape[1:]). Fewer: 0.1 normal, plus 1 where the
    last part of the name is weight, gamma or scale; a running variance is 1 + 0.1 |normal|.
    """
    z = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()))).standard_normal(size=tuple(shape))
    last = name.rsplit(".", 1)[-1]
    if len(shape) >= 2:
        values = z / np.sqrt(np.prod(shape[1:]))
    elif last == "running_var":
        values = 1 + 0.1 * np.abs(z)
    else:
        values = 0.1 * z + (last in ("weight", "gamma", "scale"))
    return np.asarray(values, np.float32)
