"""Guidance that is linear in the network's answer: wrappers that turn one ModelFn into another.

Networks and solvers know nothing of it. It acts on all channels of the image; what a network says beyond these (a
variance, an uncertainty) stays as it says. What works on images is in `samplers.denoisers`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from archirf_jax.processes.base import ModelFn, expand
from archirf_jax.samplers.denoisers import beside

Interval = tuple[float, float]
ALWAYS: Interval = (-float("inf"), float("inf"))


def classifier_free(
    model_fn: ModelFn, null: Any, scale: float, interval: Interval = ALWAYS, rescale: float = 0.0
) -> ModelFn:
    """Classifier-free guidance: f(null) + scale (f(y) - f(null)).

    Ho & Salimans 2022, Eq. 6, with scale = 1 + w.

    Args:
        model_fn: the network.
        null: the unconditional twin of y, without batch axis.
        scale: 1 is off: model_fn itself comes back, and a step costs one pass; otherwise one pass of a doubled batch.
        interval: network times, both ends included, outside of which guidance is off and a step costs one pass
            (Kynkäänniemi et al. 2024).
        rescale: 0 to 1; moves the standard deviation of the result towards that of f(y) (Lin et al. 2023, Eq. 16).
    """

    def pair(x: jax.Array, t: jax.Array, y: Any) -> tuple[jax.Array, jax.Array]:
        answer = model_fn(jnp.concatenate([x, x]), jnp.concatenate([t, t]), beside(y, null))
        conditional, unconditional = jnp.split(answer, 2)
        return conditional, unconditional

    return model_fn if scale == 1 else _guided(model_fn, pair, scale, interval, rescale)


def autoguidance(
    model_fn: ModelFn, weak_fn: ModelFn, scale: float, interval: Interval = ALWAYS, rescale: float = 0.0
) -> ModelFn:
    """Guidance by a weaker version of the network: weak(y) + scale (f(y) - weak(y)).

    Karras et al. 2024, "Guiding a Diffusion Model with a Bad Version of Itself", Eq. 3. Arguments as in
    `classifier_free`; a step costs one pass of each network.
    """

    def pair(x: jax.Array, t: jax.Array, y: Any) -> tuple[jax.Array, jax.Array]:
        return model_fn(x, t, y), weak_fn(x, t, y)

    return model_fn if scale == 1 else _guided(model_fn, pair, scale, interval, rescale)


def _guided(model_fn: ModelFn, pair: Any, scale: float, interval: Interval, rescale: float) -> ModelFn:
    def everywhere(x: jax.Array, t: jax.Array, y: Any) -> jax.Array:
        answer, other = pair(x, t, y)
        conditional, more = jnp.split(answer, [x.shape[-1]], axis=-1)
        other = other[..., : x.shape[-1]]
        guided = other + scale * (conditional - other)
        if rescale:
            axes = tuple(range(1, guided.ndim))
            before, after = (jnp.std(a, axes, keepdims=True) for a in (conditional, guided))
            guided = guided * (rescale * jnp.where(after > 0, before / jnp.where(after > 0, after, 1), 1) + 1 - rescale)
        return jnp.concatenate([guided, more], axis=-1)

    def inside(x: jax.Array, t: jax.Array, y: Any) -> jax.Array:
        on = (interval[0] <= t) & (t <= interval[1])

        def mixed() -> jax.Array:
            return jnp.where(expand(on, x), everywhere(x, t, y), model_fn(x, t, y))

        # A sampler's batch has one time, so one of the outer branches runs and costs what it says.
        return jax.lax.cond(
            jnp.all(on),
            lambda: everywhere(x, t, y),
            lambda: jax.lax.cond(jnp.any(on), mixed, lambda: model_fn(x, t, y)),
        )

    return everywhere if interval == ALWAYS else inside
