"""CLIP's text encoder: a causal transformer whose state at the end of a text stands for all of it.

Radford et al. 2021, Sec. 2.4; OpenCLIP's encoders are the same with another activation.
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

EPS = 1e-5
ACTIVATIONS = ("quick_gelu", "gelu")
PRESETS: dict[str, dict[str, Any]] = {
    "L": dict(hidden_size=768, depth=12, num_heads=12, mlp_size=3072, projection_size=768),
    "H": dict(hidden_size=1024, depth=24, num_heads=16, mlp_size=4096, activation="gelu", projection_size=1024),
    "bigG": dict(hidden_size=1280, depth=32, num_heads=20, mlp_size=5120, activation="gelu", projection_size=1280),
}


class CLIPText(layers.Presets, nn.Module):
    """Texts -> states of their tokens, and one vector a text.

    Attributes:
        vocab_size: ids are 0..vocab_size-1.
        max_length: tokens of the longest text.
        hidden_size: width of the tokens.
        depth: blocks.
        num_heads: of attention.
        mlp_size: width of the hidden layers.
        activation: of the perceptrons; OpenAI's encoders have "quick_gelu", OpenCLIP's "gelu".
        end_id: id that ends a text, whose first place is pooled; None = the place of the largest id.
        projection_size: width of the space that texts share with images; None = there is no projection.
        dtype: compute dtype; norms, softmax and sums of tokens are float32.
    """

    vocab_size: int = 49_408
    max_length: int = 77
    hidden_size: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_size: int = 3072
    activation: str = "quick_gelu"
    end_id: int | None = None
    projection_size: int | None = None
    dtype: Any = jnp.float32

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = PRESETS

    @nn.compact
    def __call__(self, ids: jax.Array, mask: jax.Array | None = None) -> dict[str, jax.Array]:
        """Encode texts.

        Args:
            ids: (B, L) int32.
            mask: (B, L) bool, True = a token that others may attend to; None = all, as Stable Diffusion has it.

        Returns:
            "tokens" (B, L, D) after the last norm; "penultimate" (B, L, D), the input of the last block, not normed
            (Podell et al. 2023, Sec. 2.1); "pooled" (B, D), of "tokens" at the end of the text; "projected" (B, P),
            where there is a projection. All float32.

        Raises:
            UserError: a text that is too long, or fields that do not fit each other.
        """
        check_heads(self.hidden_size, self.num_heads)
        layers.check_choices(self, activation=ACTIVATIONS)
        layers.check_most(self, "hidden_size", "depth")
        layers.require(self, lambda value: value > 0, "must be above 0", "depth")
        check_length(ids, self.max_length)
        x = embedded("tokens", self.vocab_size, self.hidden_size, ids)
        x = x + embedded("positions", self.max_length, self.hidden_size, jnp.arange(ids.shape[1]))
        allowed = jnp.tril(jnp.ones((1, ids.shape[1], ids.shape[1]), bool))
        if mask is not None:
            allowed = allowed & mask.astype(bool)[:, None]
        penultimate = layers.repeat(self._block, self.depth - 1, x, allowed)
        x = self._block(name=f"block_{self.depth - 1}")(penultimate, allowed)
        tokens = layer_norm("final_norm", EPS)(x)
        pooled = jnp.take_along_axis(tokens, self._ends(ids)[:, None, None], axis=1)[:, 0]
        found = {"tokens": tokens, "penultimate": penultimate, "pooled": pooled}
        if self.projection_size:
            projection = nn.Dense(self.projection_size, use_bias=False, dtype=self.dtype, name="projection")
            found["projected"] = projection(pooled).astype(jnp.float32)
        return found

    def _ends(self, ids: jax.Array) -> jax.Array:
        """(B,) places of the ends of texts; the first of several."""
        return jnp.argmax(ids if self.end_id is None else ids == self.end_id, axis=1)

    def _block(self, name: str) -> nn.Module:
        return CausalBlock(self.num_heads, self.mlp_size, self.activation, self.dtype, name=name)


class CausalBlock(nn.Module):
    """Norm and attention, norm and perceptron, each added to what came in; fields as of `CLIPText`."""

    num_heads: int
    mlp_size: int
    activation: str
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """Tokens x (B, L, D) float32 and mask (B or 1, L, L) -> (B, L, D) float32."""
        size = x.shape[-1] // self.num_heads
        attention = TextAttention(self.num_heads, size, dtype=self.dtype, name="attention")
        x = x + attention(layer_norm("attention_norm", EPS)(x), mask)
        perceptron = Perceptron(self.mlp_size, self.activation, dtype=self.dtype, name="mlp")
        return x + perceptron(layer_norm("mlp_norm", EPS)(x))


build = CLIPText
