"""The encoder of T5: a transformer whose attention knows positions by their distance alone.

Raffel et al. 2020, Sec. 2.1; version 1.1 has gated perceptrons (Shazeer 2020).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from archirf_jax.models import layers
from archirf_jax.models.attention import RMSNorm
from archirf_jax.models.text_layers import Perceptron, TextAttention, embedded

ACTIVATIONS = ("relu", "gelu_tanh")
PRESETS: dict[str, dict[str, Any]] = {
    "v1.1-base": dict(hidden_size=768, depth=12, num_heads=12, mlp_size=2048),
    "v1.1-large": dict(hidden_size=1024, depth=24, num_heads=16, mlp_size=2816),
    "v1.1-XL": dict(hidden_size=2048, depth=24, num_heads=32, mlp_size=5120),
    "v1.1-XXL": dict(hidden_size=4096, depth=24, num_heads=64, mlp_size=10_240),
}


class T5Encoder(layers.Presets, nn.Module):
    """Texts -> states of their tokens.

    Attributes:
        vocab_size: ids are 0..vocab_size-1.
        hidden_size: width of the tokens.
        depth: blocks.
        num_heads: of attention.
        head_size: channels of a head; num_heads * head_size need not be hidden_size.
        mlp_size: width of the hidden layers.
        activation: "gelu_tanh" of version 1.1, "relu" of 1.0.
        gated: whether perceptrons are gated, as in version 1.1.
        buckets: kinds of distances, half of them for either direction.
        max_distance: from which on all distances are one kind.
        dtype: compute dtype. Of float16 the last layers of the perceptrons are float32, since their numbers are
            beyond 65,504; norms, softmax and sums of tokens always are.
    """

    vocab_size: int = 32_128
    hidden_size: int = 768
    depth: int = 12
    num_heads: int = 12
    head_size: int = 64
    mlp_size: int = 2048
    activation: str = "gelu_tanh"
    gated: bool = True
    buckets: int = 32
    max_distance: int = 128
    dtype: Any = jnp.float32

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = PRESETS

    @nn.compact
    def __call__(self, ids: jax.Array, mask: jax.Array | None = None) -> dict[str, jax.Array]:
        """Encode texts.

        Args:
            ids: (B, L) int32.
            mask: (B, L) bool, True = a token that others may attend to; None = all.

        Returns:
            "tokens" (B, L, D) float32 after the last norm.

        Raises:
            UserError: fields that do not fit each other.
        """
        self._check()
        length = ids.shape[1]
        x = embedded("tokens", self.vocab_size, self.hidden_size, ids)
        distances = relative_buckets(length, self.buckets, self.max_distance)
        bias = jnp.moveaxis(embedded("distances", self.buckets, self.num_heads, distances), -1, 0)
        allowed = jnp.ones((1, length), bool) if mask is None else mask.astype(bool)
        x = layers.repeat(self._block, self.depth, x, allowed, bias)
        return {"tokens": RMSNorm(name="final_norm")(x)}

    def _block(self, name: str) -> nn.Module:
        sizes = (self.num_heads, self.head_size, self.mlp_size)
        return RelativeBlock(*sizes, self.activation, self.gated, self.dtype, name=name)

    def _check(self) -> None:
        layers.check_choices(self, activation=ACTIVATIONS)
        layers.check_most(self, "hidden_size", "depth")
        layers.require(self, lambda value: value > 0, "must be above 0", "depth", "num_heads", "head_size")
        layers.require(self, lambda value: value >= 4 and value % 4 == 0, "must be a multiple of 4", "buckets")
        least = self.buckets // 4
        layers.require(self, lambda value: value > least, f"must be above {least}", "max_distance")


class RelativeBlock(nn.Module):
    """Norm and attention, norm and perceptron, each added to what came in, no biases; fields as of `T5Encoder`."""

    num_heads: int
    head_size: int
    mlp_size: int
    activation: str
    gated: bool
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, bias: jax.Array) -> jax.Array:
        """Tokens x (B, L, D) float32, mask (B or 1, L), bias (heads, L, L) -> (B, L, D) float32."""
        plain = dict(use_bias=False, dtype=self.dtype)
        attention = TextAttention(self.num_heads, self.head_size, scaled=False, **plain, name="attention")
        x = x + attention(RMSNorm(name="attention_norm")(x), mask, bias)
        wide = jnp.float32 if jnp.dtype(self.dtype) == jnp.float16 else None
        perceptron = Perceptron(self.mlp_size, self.activation, self.gated, **plain, out_dtype=wide, name="mlp")
        return x + perceptron(RMSNorm(name="mlp_norm")(x))


def relative_buckets(length: int, buckets: int = 32, max_distance: int = 128) -> np.ndarray:
    """The kind of distance from each query to each key (Raffel et al. 2020, Sec. 2.1).

    Half of the kinds are for keys behind the query. Of each half, half are one distance each, and the others cover
    ranges that grow by a constant factor up to `max_distance`.

    Args:
        length: tokens.
        buckets: number of kinds, a multiple of 4.
        max_distance: from which on all distances are one kind.

    Returns:
        (length queries, length keys) int32 in 0..buckets-1.
    """
    distance = np.arange(length)[None] - np.arange(length)[:, None]
    half, exact = buckets // 2, buckets // 4
    # In float32, as trained: in float64 a distance at the edge of a range is of another kind.
    ratio = np.log(np.maximum(np.abs(distance), 1).astype(np.float32) / np.float32(exact))
    steps = ratio / np.float32(math.log(max_distance / exact)) * np.float32(half - exact)
    far = np.minimum(exact + np.trunc(steps).astype(np.int32), half - 1)
    kind = np.where(np.abs(distance) < exact, np.abs(distance), far)
    return (kind + half * (distance > 0)).astype(np.int32)


build = T5Encoder
