"""Conditions that are handed over as they are, such as tokens from a file or words: nothing is computed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from archirf_jax.contracts import Batch, Condition, Frozen

TYPES = {"mask": jnp.bool_, "ids": jnp.int32}


@dataclasses.dataclass(frozen=True)
class Given:
    """Keys of the batch that are conditions.

    Attributes:
        shapes: key -> shape of one example, such as {"tokens": (77, 4096), "pooled": (2048,)}; "mask" is bool, "ids"
            are int32, everything else is float32.
        droppable: whether zeros stand for no condition; otherwise these keys are never dropped.
    """

    shapes: Mapping[str, tuple[int, ...]]
    droppable: bool = True

    def __call__(self, frozen: Frozen, batch: Batch, keys: jax.Array) -> Condition:
        """The keys (B, ...) of the batch; zeros where it lacks one, as in a trace of shapes."""
        del frozen
        return {
            name: batch[name] if name in batch else _zeros(name, (len(keys), *shape))
            for name, shape in self.shapes.items()
        }

    def null(self, frozen: Frozen) -> Condition:
        """Zeros, of the keys that may be dropped."""
        del frozen
        return {name: _zeros(name, tuple(shape)) for name, shape in self.shapes.items()} if self.droppable else {}


def _zeros(name: str, shape: tuple[int, ...]) -> jax.Array:
    return jnp.zeros(shape, TYPES.get(name, jnp.float32))


build = Given
