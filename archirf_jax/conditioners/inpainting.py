"""A hole and the image around it, for a network that fills holes (Rombach et al. 2022, Sec. 4.5)."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from archirf_jax.contracts import Batch, Condition, FirstStage, Frozen

HOLE = "hole"  # the batch's key of the mask; "mask" is that of texts


@dataclasses.dataclass(frozen=True)
class Inpainting:
    """Attributes:
    first_stage: what is diffused of an image, and so of one with a hole.
    """

    first_stage: FirstStage

    def __call__(self, frozen: Frozen, batch: Batch, keys: jax.Array) -> Condition:
        """{"inpaint": (B, h, w, 1 + D)}: the hole, 1 where pixels are to be made, and what is diffused of the rest.

        Of a batch: "image" (B, H, W, C) in [-1, 1], which becomes 0, grey, in the "hole" (B, H, W, 1), 0 or 1. The hole
        is scaled to h and w by taking the first pixel of each block.
        """
        hole = batch[HOLE] > 0.5
        known = self.first_stage.encode(frozen, {"image": jnp.where(hole, 0.0, batch["image"])}, keys)
        rows, columns = (full // small for full, small in zip(hole.shape[1:3], known.shape[1:3], strict=True))
        return {"inpaint": jnp.concatenate([hole[:, ::rows, ::columns].astype(known.dtype), known], axis=-1)}

    def null(self, frozen: Frozen) -> Condition:
        """{}: the image is never dropped."""
        del frozen
        return {}


def build(first_stage: Any, sample: bool = False) -> Inpainting:
    """The conditioner of a run with this first stage.

    Args:
        first_stage: of the run.
        sample: whether latents of the rest are drawn from their distribution; otherwise they are its mode.
    """
    if not sample and hasattr(first_stage, "sample"):
        first_stage = dataclasses.replace(first_stage, sample=False)
    return Inpainting(first_stage)
