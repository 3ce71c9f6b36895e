"""A text encoder: embeddings of words and one layer of attention over those that are there."""

from __future__ import annotations

import flax.linen as nn
import jax

from archirf_jax.models.attention import attend


class TextEncoder(nn.Module):
    """Attributes:
    vocabulary: number of words.
    width: of the tokens.
    """

    vocabulary: int = 13
    width: int = 16

    @nn.compact
    def __call__(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
        """ids (B, L) int32, mask (B, L) -> (B, L, width)."""
        x = nn.Embed(self.vocabulary, self.width, name="words")(ids)
        heads = [nn.Dense(self.width, name=name)(x)[:, :, None] for name in ("query", "key", "value")]
        return x + attend(*heads, mask=mask)[:, :, 0]


build = TextEncoder
