"""Images: uint8 on the host, float32 in [-1, 1] in the batch, mirrored at random if asked for."""

from __future__ import annotations

import dataclasses
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
    """

    image_size: int
    channels: int
    flip: bool = False
    draws = False  # the flip is done on the device

    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """{"image": (H, W, C) uint8}."""
        return {"image": jax.ShapeDtypeStruct((self.image_size, self.image_size, self.channels), np.uint8)}

    def decode(self, raw: Mapping[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Raises: as `images.decode`."""
        del rng
        return {"image": images.decode(raw["image"], self.image_size, self.channels)}

    def finish(self, arrays: dict[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
        """{"image": (B, H, W, C) float32 in [-1, 1]}."""
        x = images.to_float(arrays["image"])
        if self.flip:
            mirrored = jax.random.bernoulli(key, 0.5, (x.shape[0], 1, 1, 1))
            x = jnp.where(mirrored, x[:, :, ::-1], x)
        return {"image": x}


def build(image_size: int, channels: int, flip: bool = False) -> Image:
    """Images of a set; there is one such field, and `config.data` has its options.

    Raises:
        UserError: a size out of range.
    """
    if not 1 <= image_size <= LARGEST:
        raise UserError("data.image_size", image_size, f"must be 1 to {LARGEST} pixels")
    return Image(image_size, channels, flip)
