"""Guidance by a weaker version of the network: weak + scale (strong - weak), both conditional (Karras et al. 2024)."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from archirf_jax.contracts import Condition, Denoiser, Prediction
from archirf_jax.samplers.guidance.base import Extrapolation, Interval


@dataclasses.dataclass(frozen=True)
class Autoguidance(Extrapolation):
    """Eq. 3 of "Guiding a Diffusion Model with a Bad Version of Itself", by one pass of each network.

    Attributes:
        inner: the denoiser that is guided.
        weak: the weaker denoiser, of the same process.
        scale, interval, rescale: see `Extrapolation`.
    """

    inner: Denoiser
    weak: Denoiser
    scale: float = 1.0
    interval: Interval | None = None
    rescale: float = 0.0

    def init_pair(self, x: jax.Array) -> Any:
        """The states of both denoisers."""
        return self.inner.init(x), self.weak.init(x)

    def pair(
        self, x: jax.Array, t: jax.Array, condition: Condition, state: Any, s: jax.Array | None
    ) -> tuple[Prediction, Prediction, Any]:
        """The predictions of the denoiser and of the weaker one."""
        strong_state, weak_state = state
        strong, strong_state = self.inner(x, t, condition, strong_state, s=s)
        weak, weak_state = self.weak(x, t, condition, weak_state, s=s)
        return strong, weak, (strong_state, weak_state)


build = Autoguidance
