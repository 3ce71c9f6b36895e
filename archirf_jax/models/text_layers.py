"""Layers that text encoders have in common.

Attention and perceptrons compute in `dtype`; tokens are added up and normed in float32.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from archirf_jax.errors import UserError
from archirf_jax.models.attention import attend
from archirf_jax.models.linear import Dense

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": nn.relu,
    "gelu": functools.partial(nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(nn.gelu, approximate=True),
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),  # Hendrycks & Gimpel 2016, Sec. 2
}


class TextAttention(nn.Module):
    """Self-attention with a linear layer each for queries, keys, values and what comes out.

    Attributes:
        num_heads: of attention.
        head_size: channels of a head; heads together may be wider or narrower than the tokens.
        use_bias: of the linear layers.
        scaled: whether products of queries and keys are divided by the root of a head's width.
        dtype: compute dtype.
    """

    num_heads: int
    head_size: int
    use_bias: bool = True
    scaled: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, bias: jax.Array | None = None) -> jax.Array:
        """Tokens x (B, L, D), mask as of `attend`, bias (heads, L, L) or none -> (B, L, D)."""
        dense = functools.partial(Dense, use_bias=self.use_bias, dtype=self.dtype)
        inner = self.num_heads * self.head_size
        q, k, v = (
            dense(inner, name=name)(x).reshape(*x.shape[:2], self.num_heads, self.head_size)
            for name in ("query", "key", "value")
        )
        if not self.scaled:
            q = q * self.head_size**0.5  # which `attend` divides by
        h = attend(q, k, v, mask=mask, bias=bias).reshape(*x.shape[:2], inner)
        return dense(x.shape[-1], name="out")(h)


class Perceptron(nn.Module):
    """Two linear layers with an activation between them.

    Attributes:
        hidden: width between the layers.
        activation: one of ACTIVATIONS.
        gated: whether the activations are multiplied by a third layer's output (Shazeer 2020).
        use_bias: of the linear layers.
        dtype: compute dtype.
        out_dtype: compute dtype of the last layer and of the product before it; None = `dtype`.
    """

    hidden: int
    activation: str
    gated: bool = False
    use_bias: bool = True
    dtype: Any = jnp.float32
    out_dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x (B, L, D) -> (B, L, D)."""
        dense = functools.partial(Dense, use_bias=self.use_bias)
        last = self.out_dtype or self.dtype
        h = ACTIVATIONS[self.activation](dense(self.hidden, dtype=self.dtype, name="hidden")(x)).astype(last)
        if self.gated:
            h = h * dense(self.hidden, dtype=self.dtype, name="gate")(x).astype(last)
        return dense(x.shape[-1], dtype=last, name="out")(h)


def check_length(ids: jax.Array, most: int) -> None:
    """Raise a UserError for ids (B, L) of texts that are longer than the table of positions."""
    if ids.shape[1] > most:
        raise UserError("model.max_length", most, f"is what this encoder takes, and texts have {ids.shape[1]} tokens")


def embedded(name: str, size: int, width: int, ids: jax.Array | np.ndarray) -> jax.Array:
    """Rows (..., width) float32 of a table of `size` rows, in whatever type it is kept; only in a compact module."""
    return nn.Embed(size, width, name=name)(ids).astype(jnp.float32)


def layer_norm(name: str, eps: float) -> nn.LayerNorm:
    """A layer norm in float32; only inside a compact module."""
    # The fast variance cancels where a few channels are a thousand times as large as the others, as here.
    return nn.LayerNorm(epsilon=eps, dtype=jnp.float32, use_fast_variance=False, name=name)
