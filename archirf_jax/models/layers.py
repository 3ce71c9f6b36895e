"""Layers that more than one network uses: embeddings of time, labels and positions, attention, the MLP.

Images are NHWC, token sequences are (batch, tokens, width). Parameters are float32; `dtype` is the compute dtype.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

xavier = nn.initializers.xavier_uniform()
small_normal = nn.initializers.normal(0.02)
zeros = nn.initializers.zeros_init()


def sinusoidal_embedding(t: jax.Array, width: int = 256, max_period: float = 10_000.0) -> jax.Array:
    """Cosines and sines of t at geometrically spaced frequencies (Vaswani et al. 2017, Sec. 3.5).

    Args:
        t: (B,) network times, usually 0..1000.
        width: even number of channels.
        max_period: the longest wavelength over 2 pi.

    Returns:
        (B, width) float32: all cosines, then all sines.
    """
    half = width // 2
    frequencies = np.exp(-np.log(max_period) * np.arange(half) / half).astype(np.float32)
    angles = t.astype(jnp.float32)[:, None] * frequencies  # (B, half)
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def sincos_positions_2d(height: int, width: int, channels: int) -> np.ndarray:
    """Fixed 2-D sine-cosine position table (He et al. 2021, MAE, appendix A.1).

    The first half of the channels tells the column, the second half the row, each as all sines, then all cosines.

    Args:
        height: tokens per column of the grid.
        width: tokens per row of the grid.
        channels: a multiple of 4.

    Returns:
        (height * width, channels) float32, tokens in row-major order.
    """
    frequencies = 10_000.0 ** (-np.arange(channels // 4) / (channels / 4))

    def axis_table(positions: np.ndarray) -> np.ndarray:
        angles = positions[:, None] * frequencies
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)

    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    table = np.concatenate([axis_table(columns.ravel()), axis_table(rows.ravel())], axis=1)
    return table.astype(np.float32)


def modulate(x: jax.Array, shift: jax.Array, scale: jax.Array) -> jax.Array:
    """x (B, N, D) times 1 + scale, plus shift, both (B, D): adaptive norm (Peebles & Xie 2022, Sec. 3.2)."""
    return x * (1 + scale[:, None]) + shift[:, None]


class TimestepEmbedder(nn.Module):
    """Network time (B,) -> (B, width): sinusoids, then a two-layer SiLU perceptron."""

    width: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, t: jax.Array) -> jax.Array:
        """t (B,) -> (B, width)."""
        h = sinusoidal_embedding(t).astype(self.dtype)
        h = nn.Dense(self.width, dtype=self.dtype, kernel_init=small_normal, name="hidden")(h)
        return nn.Dense(self.width, dtype=self.dtype, kernel_init=small_normal, name="out")(nn.silu(h))


class SelfAttention(nn.Module):
    """Multi-head self-attention over (B, N, D) with one fused projection; softmax in float32."""

    num_heads: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Tokens x (B, N, D) -> (B, N, D)."""
        b, n, d = x.shape
        qkv = nn.Dense(3 * d, dtype=self.dtype, kernel_init=xavier, name="qkv")(x)
        q, k, v = jnp.moveaxis(qkv.reshape(b, n, 3, self.num_heads, -1), 2, 0)  # (B, N, heads, D/heads)
        h = jax.nn.dot_product_attention(q, k, v)
        return nn.Dense(d, dtype=self.dtype, kernel_init=xavier, name="out")(h.reshape(b, n, d))


class Mlp(nn.Module):
    """Two-layer perceptron with tanh-approximated GELU over the last axis of (B, N, D)."""

    hidden: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Tokens x (B, N, D) -> (B, N, D)."""
        h = nn.Dense(self.hidden, dtype=self.dtype, kernel_init=xavier, name="hidden")(x)
        return nn.Dense(x.shape[-1], dtype=self.dtype, kernel_init=xavier, name="out")(nn.gelu(h, approximate=True))
