"""Layers of convolutional autoencoders (Esser et al. 2021, "Taming Transformers", table 7; Rombach et al. 2022).

Maps are (B, H, W, D). Norms and the softmax are in float32, everything else in `dtype`.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from archirf_jax.models import initializers
from archirf_jax.models.adm_layers import doubled
from archirf_jax.models.attention import attend, sow_logit
from archirf_jax.models.convolution import Conv
from archirf_jax.models.group_norm import group_normalized, silu
from archirf_jax.models.linear import Dense

EPS = 1e-6  # of every norm
CODE_GROUPS = 32  # of norms that a code modulates


def conv(width: int, name: str | None = None, dtype: Any = jnp.float32, size: int = 3) -> Conv:
    """A convolution to `width` channels that keeps the size of the map."""
    return Conv(width, size, dtype=dtype, kernel_init=initializers.uniform, name=name)


class Norm(nn.Module):
    """A norm over groups of channels, or, given a code, one whose scale and shift follow the code at every pixel.

    Attributes:
        groups: must divide the channels; with a code there are CODE_GROUPS.
    """

    groups: int

    @nn.compact
    def __call__(self, x: jax.Array, code: jax.Array | None = None) -> jax.Array:
        """x (B, H, W, D), code (B, h, w, C) or none -> (B, H, W, D) float32 (Zheng et al. 2022, MoVQ, Eq. 5)."""
        groups = self.groups if code is None else CODE_GROUPS
        ones, zeros = initializers.ones, initializers.zeros
        affine = self.param("scale", ones, x.shape[-1:]), self.param("bias", zeros, x.shape[-1:])
        h = group_normalized(x, *affine, groups, EPS)
        if code is None:
            return h
        code = enlarged(code.astype(jnp.float32), *x.shape[1:3])
        return h * conv(x.shape[-1], "code_scale", size=1)(code) + conv(x.shape[-1], "code_shift", size=1)(code)


def enlarged(code: jax.Array, height: int, width: int) -> jax.Array:
    """code (B, h, w, C) -> (B, height, width, C), by the nearest pixel; the sides are multiples of the code's."""
    return code.repeat(height // code.shape[1], axis=1).repeat(width // code.shape[2], axis=2)


class ResidualBlock(nn.Module):
    """Two convolutions around which a skip connection leads.

    Attributes:
        width: output channels.
        groups: of the norms.
        dtype: compute dtype.
    """

    width: int
    groups: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, code: jax.Array | None = None) -> jax.Array:
        """x (B, H, W, D) and the code of the norms, if they have one -> (B, H, W, width)."""
        h = x
        for side in ("in", "out"):
            h = silu(Norm(self.groups, name=f"norm_{side}")(h, code), self.dtype)
            h = conv(self.width, f"conv_{side}", self.dtype)(h)
        return h + (x if x.shape[-1] == self.width else conv(self.width, "skip", self.dtype, size=1)(x))


class PixelAttention(nn.Module):
    """Self-attention of all pixels with one head, added to its input; fields as of `ResidualBlock`."""

    groups: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, code: jax.Array | None = None) -> jax.Array:
        """x (B, H, W, D) and the code of the norm, if it has one -> (B, H, W, D)."""
        b, height, width, d = x.shape
        h = Norm(self.groups, name="norm")(x, code).astype(self.dtype).reshape(b, height * width, d)

        def dense(name: str) -> Dense:
            return Dense(d, dtype=self.dtype, kernel_init=initializers.uniform, name=name)

        q, k, v = (dense(name)(h)[:, :, None] for name in ("query", "key", "value"))  # (B, N, 1, D)
        sow_logit(self, q, k)
        return x + dense("out")(attend(q, k, v)[:, :, 0]).reshape(x.shape)


class Downsample(nn.Module):
    """A convolution to half the size, whose windows reach over the right and the bottom edge alone."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x (B, 2H, 2W, D) -> (B, H, W, D)."""
        return Conv(x.shape[-1], 3, 2, self.dtype, initializers.uniform, padding=(0, 1), name="conv")(x)


class Upsample(nn.Module):
    """Every pixel four times, then a convolution."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x (B, H, W, D) -> (B, 2H, 2W, D)."""
        return conv(x.shape[-1], "conv", self.dtype)(doubled(x))
