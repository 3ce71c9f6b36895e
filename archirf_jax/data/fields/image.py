"""Images: uint8 on the host, float32 in [-1, 1] in the batch; cut out and mirrored at random if asked for."""

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
CROPS = (None, "center", "random")
LEFT = 3  # the place of the cut's left among the numbers of "size"


@dataclasses.dataclass(frozen=True)
class Image:
    """The feature `image`, as a square.

    Attributes:
        image_size: pixels a side.
        channels: 1 (grey) or 3 (RGB); others, such as those of latents, are shapes that no image is decoded to.
        flip: mirror each image with probability 1/2.
        value_range: levels (lo, hi) of the files, which become -1 and 1 linearly; levels outside of them are clipped,
            and 256 stay apart. None = what the format says.
        crop: None = the largest centred square is cut out and resized. "center", "random" = the image is resized to
            just cover the square, which is cut out of its middle or anywhere; the batch then holds "size", too: height
            and width of the original, top and left of the cut in the resized image, height and width of the square
            (Podell et al. 2023, SDXL, Sec. 2.2). Of a mirrored image left is counted in the mirrored one.
    """

    image_size: int
    channels: int
    flip: bool = False
    value_range: images.ValueRange | None = None
    crop: str | None = None

    @property
    def draws(self) -> bool:
        """Whether the host draws; the flip is done on the device."""
        return self.crop == "random"

    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """{"image": (H, W, C) uint8}, and of cuts {"size": (6,) int32, "mirrored_left": () int32}."""
        found = {"image": jax.ShapeDtypeStruct((self.image_size, self.image_size, self.channels), np.uint8)}
        if self.crop is not None:
            found |= {"size": jax.ShapeDtypeStruct((6,), np.int32), "mirrored_left": jax.ShapeDtypeStruct((), np.int32)}
        return found

    def decode(self, raw: Mapping[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Raises: as `images.decode`."""
        if self.crop is None:
            return {"image": images.decode(raw["image"], self.image_size, self.channels, self.value_range)}
        sides = self.image_size, self.image_size
        found = images.cut(raw["image"], sides, self.channels, self.value_range, rng if self.draws else None)
        mirrored_left = found.resized[1] - sides[1] - found.corner[1]
        return {
            "image": found.pixels,
            "size": np.asarray((*found.original, *found.corner, *sides), np.int32),
            "mirrored_left": np.asarray(mirrored_left, np.int32),
        }

    def finish(self, arrays: dict[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
        """{"image": (B, H, W, C) float32 in [-1, 1]}, and of cuts {"size": (B, 6) int32}."""
        x, size = images.to_float(arrays["image"]), arrays.get("size")
        if self.flip:
            mirrored = jax.random.bernoulli(key, 0.5, (x.shape[0], 1, 1, 1))
            x = jnp.where(mirrored, x[:, :, ::-1], x)
            if size is not None:
                left = jnp.where(mirrored[:, 0, 0, 0], arrays["mirrored_left"], size[:, LEFT])
                size = size.at[:, LEFT].set(left)
        return {"image": x} if size is None else {"image": x, "size": size}


def build(
    image_size: int,
    channels: int,
    flip: bool = False,
    value_range: images.ValueRange | None = None,
    crop: str | None = None,
) -> Image:
    """Images of a set; there is one such field, and `config.data` has its options.

    Raises:
        UserError: a size out of range, levels that are not two finite numbers lo < hi, or a crop that is not in CROPS.
    """
    if not 1 <= image_size <= LARGEST:
        raise UserError("data.image_size", image_size, f"must be 1 to {LARGEST} pixels")
    if crop not in CROPS:
        raise UserError("data.crop", crop, f"must be one of {', '.join(map(str, CROPS))}")
    return Image(image_size, channels, flip, None if value_range is None else _checked(value_range), crop)


def _checked(value_range: Any) -> images.ValueRange:
    numbers = tuple(value_range) if isinstance(value_range, tuple | list) else ()
    real = all(isinstance(one, int | float) and not isinstance(one, bool) and math.isfinite(one) for one in numbers)
    if len(numbers) != 2 or not real or not numbers[0] < numbers[1]:
        what = "must be two finite numbers (lo, hi), lo below hi: the levels that are black and white"
        raise UserError("data.value_range", value_range, what)
    return float(numbers[0]), float(numbers[1])
