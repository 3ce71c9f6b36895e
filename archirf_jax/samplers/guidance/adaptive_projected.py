"""Guidance without the part that only raises contrast (Sadat et al. 2024, "Eliminating Oversaturation and Artifacts of
High Guidance Scales in Diffusion Models").
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from archirf_jax.contracts import Condition, Denoiser, Prediction
from archirf_jax.processes.base import Process
from archirf_jax.samplers.denoisers import with_x0
from archirf_jax.samplers.guidance.base import ask_both
from archirf_jax.samplers.ranges import check_range

TINY = 1e-12  # length that stands for that of nothing in a division


@dataclasses.dataclass(frozen=True)
class AdaptiveProjected:
    """Algorithm 1 of the paper, by one pass of a doubled batch.

    The difference of the conditional and the unconditional x0 is averaged over evaluations, cut to a length and split
    into the parts parallel and orthogonal to the conditional x0.

    Attributes:
        inner: the denoiser that is guided.
        null: as of `ClassifierFree`.
        scale: 1 is off.
        eta: weight of the parallel part; 1 keeps it whole.
        norm_threshold: length to which the difference is cut (r in the paper); None = never.
        momentum: weight of the earlier differences (beta in the paper); below 0 they push back.
    """

    inner: Denoiser
    null: Condition
    scale: float = 1.0
    eta: float = 0.0
    norm_threshold: float | None = None
    momentum: float = 0.0

    def __post_init__(self) -> None:
        check_range("sample.guidance.scale", self.scale, 0)
        check_range("sample.guidance.eta", self.eta, -jnp.inf)
        check_range("sample.guidance.momentum", self.momentum, -jnp.inf)
        if self.norm_threshold is not None:
            check_range("sample.guidance.norm_threshold", self.norm_threshold, 0, above=True)

    @property
    def process(self) -> Process:
        """The inner denoiser's process."""
        process: Process = self.inner.process
        return process

    def init(self, x: jax.Array) -> Any:
        """The inner denoiser's state for the doubled batch and the running difference, where there is momentum."""
        if self.scale == 1:
            return self.inner.init(x)
        return self.inner.init(jnp.concatenate([x, x])), jnp.zeros_like(x) if self.momentum else ()

    def __call__(
        self, x: jax.Array, t: jax.Array, condition: Condition, state: Any, *, s: jax.Array | None = None
    ) -> tuple[Prediction, Any]:
        """The guided prediction; see `contracts.Denoiser`."""
        if self.scale == 1:
            return self.inner(x, t, condition, state, s=s)
        inner_state, running = state
        conditional, unconditional, inner_state = ask_both(self.inner, self.null, x, t, condition, inner_state, s)
        update = conditional.x0 - unconditional.x0
        if self.momentum:
            running = update = update + self.momentum * running
        if self.norm_threshold is not None:
            update = update * jnp.minimum(1, self.norm_threshold / jnp.maximum(_length(update), TINY))
        direction = conditional.x0 / jnp.maximum(_length(conditional.x0), TINY)
        along = jnp.sum(update * direction, axis=tuple(range(1, x.ndim)), keepdims=True) * direction
        x0 = conditional.x0 + (self.scale - 1) * (update - along + self.eta * along)
        t = jnp.broadcast_to(t, x.shape[:1])
        return with_x0(self.process, conditional, x0, x, t), (inner_state, running)


def _length(x: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.sum(jnp.square(x), axis=tuple(range(1, x.ndim)), keepdims=True))


build = AdaptiveProjected
