"""Images: uint8 on the host, float32 in [-1, 1] in the batch; cut out and mirrored at random if asked for."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from archirf_jax.data import images
from archirf_jax.errors import UserError

LARGEST = 2**13  # pixels a side
CROPS = (None, "center", "random")
SIDES = "sides"  # in an example whose height and width are not those of the square
SMALLEST = 0.9  # area of a bucket over that of the square; the largest is 1
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
        buckets: heights and widths of the shapes that batches may have; an example with `SIDES` is cut to these
            instead of the square, and its size says so. () = all are squares.
    """

    image_size: int
    channels: int
    flip: bool = False
    value_range: images.ValueRange | None = None
    crop: str | None = None
    buckets: tuple[tuple[int, int], ...] = ()

    @property
    def draws(self) -> bool:
        """Whether an image is not decoded to the same array each time; the flip is done on the device."""
        return self.crop == "random" or bool(self.buckets)

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
        sides = raw.get(SIDES, (self.image_size, self.image_size))
        draw = rng if self.crop == "random" else None
        found = images.cut(raw["image"], sides, self.channels, self.value_range, draw)
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
    buckets: Sequence[float] | None = None,
) -> Image:
    """Images of a set; there is one such field, and `config.data` has its options.

    Raises:
        UserError: a size out of range, levels that are not two finite numbers lo < hi, a crop that is not in CROPS, or
            buckets that are not a divisor of the size and a number from 1 on.
    """
    if not 1 <= image_size <= LARGEST:
        raise UserError("data.image_size", image_size, f"must be 1 to {LARGEST} pixels")
    if crop not in CROPS:
        raise UserError("data.crop", crop, f"must be one of {', '.join(map(str, CROPS))}")
    shapes = () if buckets is None else bucket_sides(image_size, buckets)
    crop = crop or ("center" if shapes else None)
    return Image(image_size, channels, flip, None if value_range is None else _checked(value_range), crop, shapes)


def bucket_sides(image_size: int, buckets: Sequence[float]) -> tuple[tuple[int, int], ...]:
    """Heights and widths, the widest first, of all shapes of about the area of the square.

    With 1024 and (64, 4) these hold SDXL's 26 from 704x1408 to 1728x576 and, beyond them, wider and narrower ones.

    Args:
        image_size: side of the square.
        buckets: the number that both sides are multiples of, which divides image_size, and the most that one side is of
            the other.

    Raises:
        UserError: other numbers.
    """
    numbers = tuple(buckets)
    fits = len(numbers) == 2 and all(isinstance(each, int | float) and math.isfinite(each) for each in numbers)
    if not fits or numbers[0] < 1 or image_size % numbers[0] or numbers[1] < 1:
        what = f"must be a divisor of image_size={image_size} and the largest aspect ratio, 1 or more, such as (64, 4)"
        raise UserError("data.buckets", buckets, what)
    multiple, aspect, area = int(numbers[0]), numbers[1], image_size**2
    found = []
    for height in range(multiple, int(image_size * aspect) + 1, multiple):
        width = area // height // multiple * multiple
        while width * height >= SMALLEST * area:
            if max(height, width) <= aspect * min(height, width):
                found.append((height, width))
            width -= multiple
    return tuple(found)


def _checked(value_range: Any) -> images.ValueRange:
    numbers = tuple(value_range) if isinstance(value_range, tuple | list) else ()
    real = all(isinstance(one, int | float) and not isinstance(one, bool) and math.isfinite(one) for one in numbers)
    if len(numbers) != 2 or not real or not numbers[0] < numbers[1]:
        what = "must be two finite numbers (lo, hi), lo below hi: the levels that are black and white"
        raise UserError("data.value_range", value_range, what)
    return float(numbers[0]), float(numbers[1])
