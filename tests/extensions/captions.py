"""A caption of each digit as numbers of words: a field of the data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

NAMES = "zero one two three four five six seven eight nine".split()
WORDS = ["", "a", "handwritten", *NAMES]


@dataclasses.dataclass(frozen=True)
class Captions:
    """Attributes:
    length: tokens; shorter captions are padded.
    """

    length: int = 4
    draws = False

    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        shape = (self.length,)
        return {"ids": jax.ShapeDtypeStruct(shape, np.int32), "mask": jax.ShapeDtypeStruct(shape, np.bool_)}

    def decode(self, raw: Mapping[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
        label = int(raw["label"])
        words = ["a", NAMES[label]] if label % 2 else ["a", "handwritten", NAMES[label]]
        ids = np.zeros(self.length, np.int32)
        ids[: len(words)] = [WORDS.index(word) for word in words]
        return {"ids": ids, "mask": np.arange(self.length) < len(words)}

    def finish(self, arrays: dict[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
        return arrays


build = Captions
