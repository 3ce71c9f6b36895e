"""The image itself is diffused."""

from __future__ import annotations

import dataclasses

import jax

from archirf_jax.contracts import Batch, Frozen


@dataclasses.dataclass(frozen=True)
class Image:
    """The identity between images and what is diffused."""

    def encode(self, frozen: Frozen, batch: Batch, keys: jax.Array) -> jax.Array:
        """The images (B, H, W, C) of a batch, float32 in [-1, 1]."""
        del frozen, keys
        return batch["image"]

    def decode(self, frozen: Frozen, x0: jax.Array) -> jax.Array:
        """x0 (B, H, W, C) as it is."""
        del frozen
        return x0


build = Image
