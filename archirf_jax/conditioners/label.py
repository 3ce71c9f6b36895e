"""Class labels; the null label is the number of classes."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from archirf_jax.contracts import Batch, Condition, Frozen


@dataclasses.dataclass(frozen=True)
class Label:
    """Attributes:
    num_classes: labels are 0..num_classes-1.
    """

    num_classes: int

    def __call__(self, frozen: Frozen, batch: Batch, keys: jax.Array) -> Condition:
        """{"label": (B,) int32}."""
        del frozen, keys
        return {"label": batch["label"]}

    def null(self, frozen: Frozen) -> Condition:
        """The null label."""
        del frozen
        return {"label": jnp.int32(self.num_classes)}


build = Label
