"""Metrics as pairs (2,) of a sum and its weight, so that parts of a batch and steps of a report add up."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from archirf_jax.contracts import Extras, Metrics

QUARTERS = 4  # of time, whose losses are reported apart


def pair(value: Any, weight: Any = 1.0) -> jax.Array:
    """(2,) float32 of a sum and its weight."""
    return jnp.stack([jnp.asarray(value, jnp.float32), jnp.asarray(weight, jnp.float32)])


def mean(values: jax.Array) -> jax.Array:
    """The pair whose quotient is the mean of values (B,)."""
    return pair(jnp.mean(values.astype(jnp.float32)))


def by_time(values: jax.Array, t: jax.Array, name: str = "loss_t") -> Metrics:
    """Means of values (B,) in the quarters of time of t (B,), in [0, 1]."""
    quarter = jnp.clip(t * QUARTERS, 0, QUARTERS - 1).astype(jnp.int32)
    inside = [(quarter == i).astype(jnp.float32) for i in range(QUARTERS)]
    return {
        f"{name}/{i / QUARTERS:g}_{(i + 1) / QUARTERS:g}": pair(jnp.sum(values * each), jnp.sum(each))
        for i, each in enumerate(inside)
    }


def diagnostics(extras: Extras) -> Metrics:
    """The scalars that a network sows."""
    return {name: pair(value) for name, value in extras.items() if value.ndim == 0}
