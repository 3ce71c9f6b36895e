"""BERT as an encoder of sentences, such as MiniLM: the mean of the states of a text's tokens stands for it.

Devlin et al. 2019, Sec. 3; Reimers & Gurevych 2019, Sec. 3 (pooling).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from archirf_jax.models import layers
from archirf_jax.models.attention import check_heads
from archirf_jax.models.text_layers import Perceptron, TextAttention, check_length, embedded, layer_norm

EPS = 1e-12
PRESETS: dict[str, dict[str, Any]] = {
    "MiniLM-L6": dict(hidden_size=384, depth=6, num_heads=12, mlp_size=1536),
    "base": dict(hidden_size=768, depth=12, num_heads=12, mlp_size=3072),
    "large": dict(hidden_size=1024, depth=24, num_heads=16, mlp_size=4096),
}


class BERT(layers.Presets, nn.Module):
    """Texts -> states of their tokens, and one vector a text.

    Attributes:
        vocab_size: ids are 0..vocab_size-1.
        max_length: tokens of the longest text.
        types: kinds of segments; a text alone is of kind 0.
        hidden_size: width of the tokens.
        depth: blocks.
        num_heads: of attention.
        mlp_size: width of the hidden layers.
        pooler: whether there is a layer after the first token, which the prediction of a next sentence was trained by.
        dtype: compute dtype; norms, softmax and sums of tokens are float32.
    """

    vocab_size: int = 30_522
    max_length: int = 512
    types: int = 2
    hidden_size: int = 384
    depth: int = 6
    num_heads: int = 12
    mlp_size: int = 1536
    pooler: bool = True
    dtype: Any = jnp.float32

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = PRESETS

    @nn.compact
    def __call__(
        self, ids: jax.Array, mask: jax.Array | None = None, types: jax.Array | None = None
    ) -> dict[str, jax.Array]:
        """Encode texts.

        Args:
            ids: (B, L) int32.
            mask: (B, L) bool, True = a token that others may attend to and that is pooled; None = all.
            types: (B, L) int32 kinds of segments; None = 0.

        Returns:
            "tokens" (B, L, D); "pooled" (B, D), their mean over the mask; "sentence" (B, D), that with length 1;
            "first" (B, D), the pooler's answer, where there is one. All float32.

        Raises:
            UserError: a text that is too long, or fields that do not fit each other.
        """
        check_heads(self.hidden_size, self.num_heads)
        layers.check_most(self, "hidden_size", "depth")
        check_length(ids, self.max_length)
        mask = jnp.ones(ids.shape, bool) if mask is None else mask.astype(bool)
        x = layers.repeat(self._block, self.depth, self._embedded(ids, types), mask)
        count = jnp.sum(mask, axis=1, dtype=jnp.float32)[:, None]
        pooled = jnp.sum(jnp.where(mask[..., None], x, 0.0), axis=1) / jnp.maximum(count, 1e-9)
        length = jnp.linalg.norm(pooled, axis=-1, keepdims=True)
        found = {"tokens": x, "pooled": pooled, "sentence": pooled / jnp.maximum(length, 1e-12)}
        if self.pooler:
            dense = nn.Dense(self.hidden_size, dtype=self.dtype, name="pooler")
            found["first"] = nn.tanh(dense(x[:, 0]).astype(jnp.float32))
        return found

    def _embedded(self, ids: jax.Array, types: jax.Array | None) -> jax.Array:
        x = embedded("tokens", self.vocab_size, self.hidden_size, ids)
        x = x + embedded("positions", self.max_length, self.hidden_size, jnp.arange(ids.shape[1]))
        x = x + embedded("types", self.types, self.hidden_size, jnp.zeros_like(ids) if types is None else types)
        return layer_norm("norm", EPS)(x)

    def _block(self, name: str) -> nn.Module:
        return PostNormBlock(self.num_heads, self.mlp_size, self.dtype, name=name)


class PostNormBlock(nn.Module):
    """Attention and norm, perceptron and norm; fields as of `BERT`."""

    num_heads: int
    mlp_size: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """Tokens x (B, L, D) float32 and mask (B, L) -> (B, L, D) float32."""
        size = x.shape[-1] // self.num_heads
        attention = TextAttention(self.num_heads, size, dtype=self.dtype, name="attention")
        x = layer_norm("attention_norm", EPS)(x + attention(x, mask))
        perceptron = Perceptron(self.mlp_size, "gelu", dtype=self.dtype, name="mlp")
        return layer_norm("mlp_norm", EPS)(x + perceptron(x))


build = BERT
