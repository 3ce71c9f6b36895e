"""Labels: the class of each example."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np


class Label:
    """The number of the example's class in the source's `class_names`."""

    draws = False

    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """{"label": () int32}."""
        return {"label": jax.ShapeDtypeStruct((), np.int32)}

    def decode(self, raw: Mapping[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
        """The label as an array."""
        del rng
        return {"label": np.asarray(raw["label"], np.int32)}

    def finish(self, arrays: dict[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
        """{"label": (B,) int32}."""
        del key
        return arrays


def build() -> Label:
    """Labels of a set that has classes."""
    return Label()
