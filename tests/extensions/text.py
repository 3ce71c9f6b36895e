"""Conditions of a frozen text encoder: tokens with a mask."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from archirf_jax.contracts import Batch, Condition, Frozen


@dataclasses.dataclass(frozen=True)
class Text:
    """Attributes:
    encoder: (ids (B, L), mask (B, L)) -> (B, L, width).
    run: the frozen run with its parameters.
    length: tokens of a caption.
    """

    encoder: Any
    run: str
    length: int

    def __call__(self, frozen: Frozen, batch: Batch, keys: jax.Array) -> Condition:
        if "tokens" in batch:
            return {"tokens": batch["tokens"], "mask": batch["mask"]}
        return {"tokens": self._encoded(frozen, batch["ids"], batch["mask"]), "mask": batch["mask"]}

    def null(self, frozen: Frozen) -> Condition:
        ids, mask = jnp.zeros((1, self.length), jnp.int32), jnp.zeros((1, self.length), bool)
        return {"tokens": self._encoded(frozen, ids, mask)[0], "mask": mask[0]}

    def _encoded(self, frozen: Frozen, ids: jax.Array, mask: jax.Array) -> jax.Array:
        tokens: jax.Array = self.encoder.apply({"params": frozen[self.run]["model"]}, ids, mask)
        return tokens


def build(runs: Mapping[str, Any], run: str = "encoder", length: int = 4) -> Text:
    return Text(runs[run].task.model, run, length)
