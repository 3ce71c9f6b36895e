"""Layers of ADM's networks (Dhariwal & Nichol 2021, "Diffusion Models Beat GANs on Image Synthesis", Sec. 3).

Maps are (B, H, W, D), the embedding of time and label is (B, E). The second convolution of every residual block and the
last layer of every attention start at zero.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from archirf_jax.models import initializers, layers
from archirf_jax.models.attention import attend, sow_logit
from archirf_jax.models.convolution import Conv
from archirf_jax.models.group_norm import GroupNorm, silu
from archirf_jax.models.linear import Dense, Split

GROUPS = 32  # of every norm of ADM
ORDERS = ("legacy", "new")  # of attention
Text = tuple[jax.Array, jax.Array | None]  # tokens (B, L, C), and how many of the first ones count (B,); None = all


def conv(width: int, dtype: Any, name: str, stride: int = 1, size: int = 3, init: Any = initializers.uniform) -> Conv:
    """A convolution to `width` channels; 3x3 windows reach one pixel over every edge, whatever the stride."""
    return Conv(width, size, stride, dtype, init, name=name)


def group_norm(name: str | None = None, groups: int = GROUPS, eps: float = 1e-5) -> GroupNorm:
    """A norm over groups of channels, in float32."""
    return GroupNorm(groups, eps, name=name)


def doubled(x: jax.Array) -> jax.Array:
    """(B, H, W, D) -> (B, 2H, 2W, D): every pixel four times."""
    return x.repeat(2, axis=1).repeat(2, axis=2)


def halved(x: jax.Array) -> jax.Array:
    """(B, 2H, 2W, D) -> (B, H, W, D): means of four pixels."""
    b, height, width, channels = x.shape
    return x.reshape(b, height // 2, 2, width // 2, 2, channels).mean(axis=(2, 4))


class TimeEmbedding(nn.Module):
    """Network times (B,) -> (B, 4 model_channels) float32: sinusoids, then a two-layer SiLU perceptron."""

    model_channels: int

    @nn.compact
    def __call__(self, t: jax.Array) -> jax.Array:
        """t (B,) -> (B, 4 model_channels)."""
        h = layers.sinusoidal_embedding(t, self.model_channels)
        h = nn.silu(nn.Dense(4 * self.model_channels, kernel_init=initializers.uniform, name="hidden")(h))
        return nn.Dense(4 * self.model_channels, kernel_init=initializers.uniform, name="out")(h)


class ResBlock(nn.Module):
    """Two convolutions around which a skip connection leads, conditioned between them (Sec. 3.1, AdaGN).

    Attributes:
        width: output channels.
        scale_shift: the embedding scales and shifts the second norm; otherwise it is added before it.
        dropout: rate before the second convolution, wherever an rng called "dropout" is given.
        direction: "down" halves the map and the skip connection, "up" doubles them (Brock et al. 2018).
        dtype: compute dtype; norms are in float32.
        groups: of the norms; must divide the channels that come in, and `width`.
    """

    width: int
    scale_shift: bool
    dropout: float = 0.0
    direction: str = ""
    dtype: Any = jnp.float32
    groups: int = GROUPS

    @nn.compact
    def __call__(self, x: jax.Array, emb: jax.Array) -> jax.Array:
        """Map x (B, H, W, D) and embedding (B, E) -> (B, H', W', width)."""
        resize = {"": lambda a: a, "down": halved, "up": doubled}[self.direction]
        h = resize(silu(group_norm("norm_in", self.groups)(x), self.dtype))
        h = conv(self.width, self.dtype, "conv_in")(h)
        vectors = 2 if self.scale_shift else 1
        dense = nn.Dense(
            vectors * self.width, dtype=self.dtype, kernel_init=initializers.uniform, name="embedding_projection"
        )
        modulation = dense(nn.silu(emb))[:, None, None]
        norm = group_norm("norm_out", self.groups)
        if self.scale_shift:
            scale, shift = jnp.split(modulation.astype(jnp.float32), 2, axis=-1)
            h = norm(h) * (1 + scale) + shift
        else:
            h = norm(h + modulation)
        h = silu(h, self.dtype)
        h = nn.Dropout(self.dropout)(h, deterministic=not self.has_rng("dropout"))
        h = conv(self.width, self.dtype, "conv_out", init=initializers.zeros)(h)
        x = resize(x)
        return h + (x if x.shape[-1] == self.width else conv(self.width, self.dtype, "skip", size=1)(x))


class Attention(nn.Module):
    """Self-attention of all pixels, added to its input; a text's tokens may join the pixels as keys and values.

    Attributes:
        num_heads: must divide the channels.
        order: how the channels of a projection fall apart: "legacy" first into heads, "new" first into queries, keys
            and values.
        dtype: compute dtype; the norm and the softmax are in float32.
    """

    num_heads: int
    order: str = "legacy"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, text: Text | None = None) -> jax.Array:
        """x (B, H, W, D) -> (B, H, W, D), under one softmax over pixels and tokens (Nichol et al. 2021, Sec. 4)."""
        b, height, width, d = x.shape
        h = group_norm("norm")(x).reshape(b, height * width, d)
        q, k, v = projected(h, 3, d, self.num_heads, self.order, self.dtype, "qkv")
        lengths = None
        if text is not None:
            tokens, lengths = text
            of_text = projected(tokens, 2, d, self.num_heads, self.order, self.dtype, "text_key_value")
            k, v = (jnp.concatenate(pair, axis=1) for pair in zip((k, v), of_text, strict=True))
            lengths = None if lengths is None else height * width + lengths
        sow_logit(self, q, k)
        h = attend(q, k, v, key_lengths=lengths).reshape(b, height * width, d)
        h = Dense(d, dtype=self.dtype, kernel_init=initializers.zeros, name="out")(h)
        return x + h.reshape(x.shape)


def projected(
    x: jax.Array, parts: int, width: int, num_heads: int, order: str, dtype: Any, name: str
) -> list[jax.Array]:
    """x (B, N, D) -> such as queries, keys and values, `parts` of (B, N, heads, width / heads), by one linear layer.

    Only inside a compact module. `order` as in `Attention`.
    """
    together = num_heads if order == "legacy" else 1
    dense = Split(parts * width, parts, together, dtype=dtype, kernel_init=initializers.uniform, name=name)
    return [part.reshape(*x.shape[:-1], num_heads, width // num_heads) for part in dense(x)]
