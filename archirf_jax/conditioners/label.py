"""Class labels; the null label is the number of classes."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from archirf_jax.contracts import Batch, Condition, Frozen


@dataclasses.dataclass(frozen=True)
class Label:
    """The batch's labels.

    Attributes:
        num_classes: labels are 0..num_classes-1.
    """

    num_classes: int

    def __call__(self, frozen: Frozen, batch: Batch, keys: jax.Array) -> Condition:
        """{"label": (B,) int32}; 0 where the data has no labels."""
        del frozen
        return {"label": batch["label"] if "label" in batch else jnp.zeros(len(keys), jnp.int32)}

    def null(self, frozen: Frozen) -> Condition:
        """The null label."""
        del frozen
        return {"label": jnp.int32(self.num_classes)}


build = Label
