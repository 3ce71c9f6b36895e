"""A further feature of the set that is an array of numbers, such as a box, a score or cached features."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from archirf_jax.errors import UserError

TYPES = ("bool", "uint8", "int8", "int16", "int32", "uint32", "float16", "float32")


@dataclasses.dataclass(frozen=True)
class Array:
    """The feature as it comes, in the batch under its own name.

    Attributes:
        feature: its name in the set.
        shape: of one example.
        dtype: one of `TYPES`.
    """

    feature: str
    shape: tuple[int, ...]
    dtype: str
    draws = False

    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """{feature: shape}."""
        return {self.feature: jax.ShapeDtypeStruct(self.shape, np.dtype(self.dtype))}

    def decode(self, raw: Mapping[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Raises: UserError where the set does not have the feature in this shape."""
        del rng
        if self.feature not in raw:
            raise UserError("data.fields", message=f"the set has no feature {self.feature!r}; it has {', '.join(raw)}")
        value = np.asarray(raw[self.feature], self.dtype)
        if value.shape != self.shape:
            raise UserError("data.fields", message=f"{self.feature!r} has the shape {value.shape}, not {self.shape}")
        return {self.feature: value}

    def finish(self, arrays: dict[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
        """{feature: (B, ...)}."""
        del key
        return arrays


def build(feature: str, shape: Sequence[int] = (), dtype: str = "float32") -> Array:
    """An array of the set.

    Raises:
        UserError: a type that a batch cannot hold.
    """
    if dtype not in TYPES:
        raise UserError("data.fields", dtype, f"is not a type of arrays; take one of {', '.join(TYPES)}")
    return Array(feature, tuple(shape), dtype)
