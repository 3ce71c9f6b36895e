"""Ways between two noises."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def slerp(first: jax.Array, second: jax.Array, weight: jax.Array) -> jax.Array:
    """Spherical interpolation of each example (Shoemake 1985): the length stays that of noise on the way.

    Args:
        first: (B, H, W, C).
        second: the same shape.
        weight: (B,), 0 is `first`, 1 is `second`.
    """
    axes = tuple(range(1, first.ndim))
    weight = weight.reshape(-1, *[1] * len(axes))
    lengths = jnp.sqrt(jnp.sum(first**2, axes, keepdims=True) * jnp.sum(second**2, axes, keepdims=True))
    cosine = jnp.sum(first * second, axes, keepdims=True) / jnp.maximum(lengths, jnp.finfo(first.dtype).tiny)
    angle = jnp.arccos(jnp.clip(cosine, -1, 1))
    straight = jnp.sin(angle) < 1e-4  # parallel: the formula is 0 / 0 and a straight line the same
    sine = jnp.where(straight, 1, jnp.sin(angle))
    return jnp.where(
        straight,
        (1 - weight) * first + weight * second,
        (jnp.sin((1 - weight) * angle) * first + jnp.sin(weight * angle) * second) / sine,
    )
