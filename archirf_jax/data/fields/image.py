"""Images: uint8 on the host, float32 in [-1, 1] in the batch, mirrored at random if asked for."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from archirf_jax.data import images
from archirf_jax.errors import UserError

LARGEST = 2**13  # pixels a side


@dataclasses.dataclass(frozen=True)
class Image:
    """The feature `image`, as a centred square.

    Attributes:
        image_size: pixels a side.
        channels: 1 (grey) or 3 (RGB); others, such as those of latents, are shapes that no image is decoded to.
        flip: mirror each image with probability 1/2.
        value_range: levels (lo, hi) of the files, which become -1 and 1 linearly; levels outside of them are clipped,
            and 256 stay apart. None = what the format says.
    """

    image_size: int
    channels: int
    flip: bool = False
    value_range: images.ValueRange | None = None
    draws = False  # the flip is done on the device

    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """{"image": (H, W, C) uint8}."""
        return {"image": jax.ShapeDtypeStruct((self.image_size, self.image_size, self.channels), np.uint8)}

    def decode(self, raw: Mapping[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Raises: as `images.decode`."""
        del rng
        return {"image": images.decode(raw["image"], self.image_size, self.channels, self.value_range)}

    def finish(self, arrays: dict[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
        """{"image": (B, H, W, C) float32 in [-1, 1]}."""
        x = images.to_float(arrays["image"])
        if self.flip:
            mirrored = jax.random.bernoulli(key, 0.5, (x.shape[0], 1, 1, 1))
            x = jnp.where(mirrored, x[:, :, ::-1], x)
        return {"image": x}


def build(image_size: int, channels: int, flip: bool = False, value_range: images.ValueRange | None = None) -> Image:
    """Images of a set; there is one such field, and `config.data` has its options.

    Raises:
        UserError: a size out of range, or levels that are not two finite numbers lo < hi.
    """
    if not 1 <= image_size <= LARGEST:
        raise UserError("data.image_size", image_size, f"must be 1 to {LARGEST} pixels")
    return Image(image_size, channels, flip, None if value_range is None else _checked(value_range))


def _checked(value_range: Any) -> images.ValueRange:
    numbers = tuple(value_range) if isinstance(value_range, tuple | list) else ()
    real = all(isinstance(one, int | float) and not isinstance(one, bool) and math.isfinite(one) for one in numbers)
    if len(numbers) != 2 or not real or not numbers[0] < numbers[1]:
        what = "must be two finite numbers (lo, hi), lo below hi: the levels that are black and white"
        raise UserError("data.value_range", value_range, what)
    return float(numbers[0]), float(numbers[1])
