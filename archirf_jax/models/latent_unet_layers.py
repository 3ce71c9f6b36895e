"""Layers of latent diffusion's U-Net (Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion
Models", Sec. 3.3 and appendix E.2.1): transformers whose tokens are pixels and whose context is a text.

Maps are (B, H, W, D), tokens (B, N, D), the text (B, L, C). Norms and the softmax are in float32.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from archirf_jax.models import initializers
from archirf_jax.models.adm_layers import conv, group_norm
from archirf_jax.models.attention import attend, sow_logit
from archirf_jax.models.linear import Dense
from archirf_jax.models.text_layers import layer_norm

Lengths = jax.Array | None  # (B,) how many tokens of the text count; None = all
MAP_EPS, TOKEN_EPS = 1e-6, 1e-5  # of a transformer's norm of maps, and of its blocks' norms of tokens


class ContextAttention(nn.Module):
    """Attention from tokens to a context, which may be the tokens themselves; only the last layer has a bias.

    Attributes:
        num_heads: must divide the width of the tokens.
        dtype: compute dtype.
    """

    num_heads: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array, key_lengths: Lengths = None) -> jax.Array:
        """Tokens x (B, N, D), context (B, M, C) and how many of its tokens count (B,) -> (B, N, D)."""
        b, n, d = x.shape

        def heads(name: str, of: jax.Array) -> jax.Array:
            dense = Dense(d, use_bias=False, dtype=self.dtype, kernel_init=initializers.uniform, name=name)
            return dense(of).reshape(b, of.shape[1], self.num_heads, d // self.num_heads)

        q, k, v = heads("query", x), heads("key", context), heads("value", context)
        sow_logit(self, q, k)
        h = attend(q, k, v, key_lengths=key_lengths).reshape(b, n, d)
        return Dense(d, dtype=self.dtype, kernel_init=initializers.uniform, name="out")(h)


class GatedPerceptron(nn.Module):
    """Two linear layers; between them one half of the channels is gated by the GELU of the other (Shazeer 2020, GEGLU).

    The hidden layer has four times the channels of the tokens.
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x (B, N, D) -> (B, N, D)."""
        d = x.shape[-1]
        h = Dense(8 * d, dtype=self.dtype, kernel_init=initializers.uniform, name="hidden")(x)
        h, gate = jnp.split(h, 2, axis=-1)
        h = h * nn.gelu(gate, approximate=False)
        return Dense(d, dtype=self.dtype, kernel_init=initializers.uniform, name="out")(h)


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention and a perceptron, each of the normed tokens and added to them.

    Attributes:
        num_heads: of both attentions.
        only_cross_attention: the first attention reads the text as well, and pixels do not see each other.
        dtype: compute dtype.
    """

    num_heads: int
    only_cross_attention: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, text: jax.Array, lengths: Lengths) -> jax.Array:
        """Tokens x (B, N, D), text (B, L, C) and how many of its tokens count -> (B, N, D)."""
        first = ContextAttention(self.num_heads, self.dtype, name="self_attention")
        h = layer_norm("norm_self", TOKEN_EPS)(x)
        x = x + (first(h, text, lengths) if self.only_cross_attention else first(h, h))
        second = ContextAttention(self.num_heads, self.dtype, name="cross_attention")
        x = x + second(layer_norm("norm_cross", TOKEN_EPS)(x), text, lengths)
        return x + GatedPerceptron(self.dtype, name="perceptron")(layer_norm("norm_perceptron", TOKEN_EPS)(x))


class SpatialTransformer(nn.Module):
    """Transformer blocks between two projections of every pixel, added to the map; 0 at initialisation.

    Attributes:
        depth: number of blocks.
        num_heads: must divide the channels.
        only_cross_attention: as of `TransformerBlock`.
        linear: the projections are linear layers; False makes convolutions of size 1 of them, which compute the same.
        groups: of the norm of the map; must divide the channels.
        dtype: compute dtype.
    """

    depth: int
    num_heads: int
    only_cross_attention: bool
    linear: bool
    groups: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, text: jax.Array, lengths: Lengths) -> jax.Array:
        """Map x (B, H, W, D), text (B, L, C) and how many of its tokens count -> (B, H, W, D)."""
        b, height, width, d = x.shape
        h = self._project("project_in", initializers.uniform, group_norm("norm", self.groups, MAP_EPS)(x))
        h = h.reshape(b, height * width, d)
        for i in range(self.depth):
            block = TransformerBlock(self.num_heads, self.only_cross_attention, self.dtype, name=f"block_{i}")
            h = block(h, text, lengths)
        return x + self._project("project_out", initializers.zeros, h.reshape(x.shape))

    def _project(self, name: str, init: Any, x: jax.Array) -> jax.Array:
        if self.linear:
            return Dense(x.shape[-1], dtype=self.dtype, kernel_init=init, name=name)(x)
        return conv(x.shape[-1], self.dtype, name, size=1, init=init)(x)
