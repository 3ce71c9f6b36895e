"""Latents that an autoencoder made of the images beforehand, with those of the mirrored images if there are any."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from archirf_jax.errors import UserError

NAME = "moments"  # in the source and in the batch


@dataclasses.dataclass(frozen=True)
class Latents:
    """What the autoencoder's `encode` gave, as a latent cache holds it.

    Attributes:
        shape: (h, w, D) of one image's.
        views: 2 where the mirrored image's are there too, else 1.
        flip: take the mirrored image's with probability 1/2.
    """

    shape: tuple[int, ...]
    views: int = 1
    flip: bool = False
    draws = False  # the choice is made on the device

    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """{"moments": (views, h, w, D) float16}."""
        return {NAME: jax.ShapeDtypeStruct((self.views, *self.shape), np.dtype(np.float16))}

    def decode(self, raw: Mapping[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
        """The array as it is."""
        del rng
        return {NAME: np.asarray(raw[NAME])}

    def finish(self, arrays: dict[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
        """{"moments": (B, h, w, D) float32}."""
        x = arrays[NAME].astype(jnp.float32)
        if not self.flip:
            return {NAME: x[:, 0]}
        mirrored = jax.random.bernoulli(key, 0.5, (x.shape[0], 1, 1, 1))
        return {NAME: jnp.where(mirrored, x[:, 1], x[:, 0])}


def build(shape: Sequence[int], views: int = 1, flip: bool = False) -> Latents:
    """The latents of a cache, which says what shape they have.

    Raises:
        UserError: no such shape, or mirrored latents are asked for that are not there.
    """
    if len(shape) != 3 or min(shape) < 1 or views not in (1, 2):
        raise UserError("data.fields.moments.shape", tuple(shape), "is not (h, w, D) of latents with 1 or 2 views")
    if flip and views == 1:
        what = "needs the latents of mirrored images; make the cache by prepare_data with --flip"
        raise UserError("data.flip", flip, what)
    return Latents(tuple(shape), views, flip)
