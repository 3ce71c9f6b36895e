"""Guidance: wrappers that turn one ModelFn into another. Networks and solvers know nothing of it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from archirf_jax.processes.base import ModelFn


def classifier_free(model_fn: ModelFn, null: Any, scale: float) -> ModelFn:
    """Classifier-free guidance on all channels: f(null) + scale (f(y) - f(null)).

    Ho & Salimans 2022, Eq. 6, with scale = 1 + w.

    Args:
        model_fn: the network.
        null: the unconditional twin of y, without batch axis.
        scale: 1 is off: model_fn itself comes back, and a step costs one pass; otherwise one pass of a doubled batch.
    """
    if scale == 1:
        return model_fn

    def guided(x: jax.Array, t: jax.Array, y: Any) -> jax.Array:
        both = jax.tree.map(lambda a, b: jnp.concatenate([a, jnp.broadcast_to(b, a.shape).astype(a.dtype)]), y, null)
        out = model_fn(jnp.concatenate([x, x]), jnp.concatenate([t, t]), both)
        conditional, unconditional = jnp.split(out, 2)
        return unconditional + scale * (conditional - unconditional)

    return guided
