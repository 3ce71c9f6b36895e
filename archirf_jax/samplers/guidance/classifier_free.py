"""Classifier-free guidance: unconditional + scale (conditional - unconditional) (Ho & Salimans 2022)."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from archirf_jax.contracts import Condition, Denoiser, Prediction
from archirf_jax.samplers.guidance.base import Extrapolation, Interval, ask_both


@dataclasses.dataclass(frozen=True)
class ClassifierFree(Extrapolation):
    """Eq. 6 of the paper with scale = 1 + w, by one pass of a doubled batch.

    Attributes:
        inner: the denoiser that is guided.
        null: the condition that stands for none, or a negative one; keys that it lacks stay conditional. Its leaves
            are without batch axis, or have one.
        scale, interval, rescale: see `Extrapolation`.
    """

    inner: Denoiser
    null: Condition
    scale: float = 1.0
    interval: Interval | None = None
    rescale: float = 0.0

    def init_pair(self, x: jax.Array) -> Any:
        """The inner denoiser's state for the doubled batch."""
        return self.inner.init(jnp.concatenate([x, x]))

    def pair(
        self, x: jax.Array, t: jax.Array, condition: Condition, state: Any, s: jax.Array | None
    ) -> tuple[Prediction, Prediction, Any]:
        """With the condition and with the null condition."""
        return ask_both(self.inner, self.null, x, t, condition, state, s)


build = ClassifierFree
