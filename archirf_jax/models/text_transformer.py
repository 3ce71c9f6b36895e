"""A small text encoder that is trained with the network it serves, as GLIDE's is (Nichol et al. 2021, Sec. 4)."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from archirf_jax.models import initializers, layers
from archirf_jax.models.attention import check_heads
from archirf_jax.models.text_layers import Perceptron, TextAttention, check_length, layer_norm

EPS = 1e-6
POOLINGS = ("mean", "last")


class TextTransformer(nn.Module):
    """Texts -> states of their tokens, and one vector a text.

    Attributes:
        vocab_size: ids are 0..vocab_size-1.
        max_length: tokens of the longest text.
        hidden_size: width of the tokens, a multiple of num_heads.
        depth: blocks; 0 leaves words and places.
        num_heads: of attention.
        mlp_ratio: width of the perceptrons' hidden layers over hidden_size.
        pooling: what the one vector is: "mean" of the tokens under the mask, or the "last" of them, as in GLIDE; zeros
            for a text without tokens.
        dtype: compute dtype; norms, softmax and sums of tokens are float32.
    """

    vocab_size: int = 64
    max_length: int = 16
    hidden_size: int = 128
    depth: int = 2
    num_heads: int = 4
    mlp_ratio: float = 4.0
    pooling: str = "mean"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, ids: jax.Array, mask: jax.Array | None = None) -> dict[str, jax.Array]:
        """ids (B, L) int32, mask (B, L) bool -> "tokens" (B, L, D), "pooled" (B, D), both float32.

        Raises:
            UserError: a text that is too long, or fields that do not fit each other.
        """
        layers.require(self, lambda value: value > 0, "must be above 0", "vocab_size", "hidden_size", "mlp_ratio")
        layers.require(self, lambda value: value >= 0, "must be 0 or more", "depth")
        layers.check_most(self, "hidden_size", "depth")
        layers.check_choices(self, pooling=POOLINGS)
        check_heads(self.hidden_size, self.num_heads)
        check_length(ids, self.max_length)
        mask = jnp.ones(ids.shape, bool) if mask is None else mask.astype(bool)
        embed = functools.partial(nn.Embed, features=self.hidden_size, embedding_init=initializers.small_normal)
        x = embed(self.vocab_size, name="tokens")(ids)
        x = x + embed(self.max_length, name="positions")(jnp.arange(ids.shape[1]))
        for i in range(self.depth):
            x = TextBlock(self.num_heads, int(self.hidden_size * self.mlp_ratio), self.dtype, name=f"block_{i}")(
                x, mask
            )
        tokens = layer_norm("final_norm", EPS)(x)
        counted = mask
        if self.pooling == "last":
            after = jnp.cumsum(mask[:, ::-1], axis=1)[:, ::-1]  # tokens from each place on
            counted = mask & (after == 1)
        there = counted[..., None].astype(jnp.float32)
        pooled = jnp.sum(tokens * there, axis=1) / jnp.maximum(jnp.sum(there, axis=1), 1)
        return {"tokens": tokens, "pooled": pooled}


class TextBlock(nn.Module):
    """Norm and attention, norm and perceptron, each added to what came in; fields as of `TextTransformer`."""

    num_heads: int
    mlp_size: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """Tokens x (B, L, D) float32, mask (B, L) -> (B, L, D) float32."""
        attention = TextAttention(self.num_heads, x.shape[-1] // self.num_heads, dtype=self.dtype, name="attention")
        x = x + attention(layer_norm("attention_norm", EPS)(x), mask)
        perceptron = Perceptron(self.mlp_size, "gelu", dtype=self.dtype, name="mlp")
        return x + perceptron(layer_norm("mlp_norm", EPS)(x))


build = TextTransformer
