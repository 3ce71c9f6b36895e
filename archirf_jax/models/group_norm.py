"""Norms over groups of channels (Wu & He 2018, "Group Normalization") and the SiLU after them, in few passes.

Maps are (B, ..., D); what is computed is float32.
"""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from archirf_jax.models import initializers

FEW = 8  # one pixel in so many tells roughly where a group's mean is


class GroupNorm(nn.Module):
    """A norm over groups of channels, with a learned scale and bias a channel.

    Attributes:
        groups: must divide the channels.
        eps: added to the variance.
    """

    groups: int
    eps: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x (B, ..., D) -> like x, float32."""
        scale = self.param("scale", initializers.ones, x.shape[-1:])
        bias = self.param("bias", initializers.zeros, x.shape[-1:])
        return group_normalized(x, scale, bias, self.groups, self.eps)


def group_normalized(x: jax.Array, scale: jax.Array, bias: jax.Array, groups: int, eps: float) -> jax.Array:
    """x (B, ..., D) with mean 0 and variance 1 in each group of channels, times scale (D,) plus bias (D,), float32."""
    b, d = len(x), x.shape[-1]
    pixels = x.astype(jnp.float32).reshape(b, -1, d)

    def means(of: jax.Array) -> jax.Array:
        """(B, N, D) -> (B, 1, D): of each channel's group."""
        return jnp.repeat(jnp.mean(of.reshape(b, -1, groups, d // groups), axis=(1, 3)), d // groups, axis=1)[:, None]

    # Moments about a value near the mean: both from one pass, and as exact as from two. The value itself cancels.
    near = jax.lax.stop_gradient(means(pixels[:, ::FEW]))
    moved = pixels - near
    mean = means(moved)
    variance = jnp.maximum(means(jnp.square(moved)) - jnp.square(mean), 0.0)
    return ((pixels - (near + mean)) * (jax.lax.rsqrt(variance + eps) * scale) + bias).reshape(x.shape)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def silu(h: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """The SiLU of float32 h in `dtype`, whose gradient is an array of `dtype` too, not one of float32."""
    return nn.silu(h).astype(dtype)


@silu.defjvp
def _slope_of_silu(
    dtype: jnp.dtype, primals: tuple[jax.Array], slopes: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    (h,) = primals
    gate = nn.sigmoid(h)
    return silu(h, dtype), slopes[0].astype(dtype) * (gate * (1 + h * (1 - gate))).astype(dtype)
