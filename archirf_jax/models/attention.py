"""Attention: the one place that chooses its implementation, norms of queries and keys, rotary positions.

Queries, keys and values are (batch, tokens, heads, head width).
"""

from __future__ import annotations

import contextlib
import contextvars
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from archirf_jax.errors import UserError
from archirf_jax.models import initializers
from archirf_jax.models.layers import DIAGNOSTICS
from archirf_jax.models.linear import Dense, Split

# (q, k, v, mask, key_lengths) -> like q; as `attend`.
Implementation = Callable[[jax.Array, jax.Array, jax.Array, jax.Array | None, jax.Array | None], jax.Array]

HALF_PRECISION = (jnp.bfloat16, jnp.float16)
QK_NORMS = (None, "rms", "layer")
ROTARY_BASE = 10_000.0
BLOCK = 256  # queries that XLA computes together on a CPU; jax before 0.11 computes 512 of them where there are 257
PARTS = 4  # of a batch, whose gradients took two cores four fifths of the time of the whole's
FEWEST = 64  # tokens from which parts gain something
SAMPLED = np.s_[::16]  # images of a batch whose logits are reported: enough to see them grow, and next to no work

_chosen: contextvars.ContextVar[Implementation | None] = contextvars.ContextVar("attention", default=None)


@contextlib.contextmanager
def using(implementation: Implementation) -> Iterator[None]:
    """Attention is computed by `implementation` in everything that is traced meanwhile, such as `plain`."""
    token = _chosen.set(implementation)
    try:
        yield
    finally:
        _chosen.reset(token)


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    mask: jax.Array | None = None,
    key_lengths: jax.Array | None = None,
    bias: jax.Array | None = None,
) -> jax.Array:
    """softmax(q k' / sqrt(width) + bias) v, the softmax in float32; 0 where a query may attend to nothing.

    Args:
        q: (B, N, heads, width).
        k, v: (B, M, heads, width).
        mask: bool, (B, M) or anything that broadcasts to (B, N, M); True = the key may be attended to.
        key_lengths: (B,) how many of the first keys may be attended to; flash attention takes these, but no mask.
        bias: (heads, N, M) float32, such as one of relative positions; it is computed without flash attention.
    """
    if bias is not None:
        return plain(q, k, v, mask, key_lengths, bias)
    return (_chosen.get() or _by_platform)(q, k, v, mask, key_lengths)


def plain(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array | None = None,
    key_lengths: jax.Array | None = None,
    bias: jax.Array | None = None,
) -> jax.Array:
    """`attend` by two products with the weights in memory: it has forward-mode and second derivatives everywhere."""
    allowed = _allowed(k.shape[1], mask, key_lengths)
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
    logits = _logits(q, k) if bias is None else _logits(q, k) + bias
    if allowed is None:
        largest = jnp.max(logits, axis=-1, keepdims=True)
    else:
        logits = jnp.where(allowed, logits, -jnp.inf)
        largest = jnp.max(logits, axis=-1, keepdims=True, initial=jnp.finfo(jnp.float32).min)
    weights = jnp.exp(logits - jax.lax.stop_gradient(largest))
    mixed = jnp.einsum("bhnm,bhmd->bhnd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    total = jnp.sum(weights, axis=-1)
    if allowed is not None:
        total = jnp.where(total == 0, 1.0, total)
    # Divided after the product: a value a channel and token, not one a pair of tokens.
    return jnp.swapaxes(mixed / total[..., None], 1, 2).astype(v.dtype)


def flash(q: jax.Array, k: jax.Array, v: jax.Array, key_lengths: jax.Array | None = None) -> jax.Array:
    """`attend` by cuDNN; it has gradients, but neither forward-mode nor second derivatives."""
    queries, keys = q.shape[1], k.shape[1]
    # jax refuses cuDNN's gradients where a number of tokens is odd.
    q, k, v = (jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0))) for x in (q, k, v))
    if key_lengths is None and keys % 2 == 0:
        return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")[:, :queries]
    lengths = jnp.full(len(k), keys) if key_lengths is None else key_lengths
    some = jnp.maximum(lengths, 1).astype(jnp.int32)  # without any key cuDNN's result is undefined
    out = jax.nn.dot_product_attention(q, k, v, key_value_seq_lengths=some, implementation="cudnn")[:, :queries]
    return jnp.where((lengths > 0)[:, None, None, None], out, jnp.zeros((), out.dtype))


@jax.custom_jvp
def in_parts(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None = None, key_lengths: jax.Array | None = None
) -> jax.Array:
    """`plain` as one CPU is fastest at it: without derivatives parts of the queries, with them parts of the batch."""
    parts = 2 if BLOCK < q.shape[1] < 2 * BLOCK else 1
    masks = [mask] * parts if mask is None or mask.ndim == 2 else _cut(mask, 1, parts)
    queries = zip(_cut(q, 1, parts), masks, strict=True)
    return jnp.concatenate([plain(some, k, v, each, key_lengths) for some, each in queries], axis=1)


@in_parts.defjvp
def _derivatives(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[jax.Array, jax.Array]:
    return jax.jvp(_by_images, primals, tangents)


def _by_images(*arrays: Any) -> jax.Array:
    """`plain` of parts of the batch."""
    q, k = arrays[:2]
    parts = math.gcd(len(q), PARTS) if min(q.shape[1], k.shape[1]) >= FEWEST else 1
    images = zip(*(_cut(each, 0, parts) for each in arrays), strict=True)
    return jnp.concatenate([plain(*some) for some in images])


def _cut(x: Any, axis: int, parts: int) -> Sequence[Any]:
    """Parts of x along an axis, as equal as they can be; x itself for each where it is None or broadcasts there."""
    if x is None or x.shape[axis] == 1:
        return [x] * parts
    ends = [i * x.shape[axis] // parts for i in range(parts + 1)]
    return jax.lax.split(x, [end - start for start, end in itertools.pairwise(ends)], axis)


def sow_logit(module: nn.Module, q: jax.Array, k: jax.Array) -> None:
    """Sow the largest logit of the images SAMPLED into DIAGNOSTICS, if the module is asked for diagnostics."""
    if not module.is_mutable_collection(DIAGNOSTICS) or module.is_initializing():
        return
    # By themselves: flash attention has no logits, and a second use of them keeps XLA from fusing the softmax.
    some = (jnp.swapaxes(jax.lax.stop_gradient(x[SAMPLED]), 1, 2) for x in (q, k))
    largest = jnp.max(_logits(*some))
    module.sow(DIAGNOSTICS, "attention_logit", largest, reduce_fn=jnp.maximum, init_fn=lambda: jnp.float32(-jnp.inf))


def flash_fits(q: jax.Array) -> bool:
    """Whether cuDNN's flash attention takes these queries, on a GPU."""
    # 128 is the widest head that every GPU takes.
    return q.dtype in HALF_PRECISION and q.shape[-1] % 8 == 0 and q.shape[-1] <= 128


def _by_platform(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None, key_lengths: jax.Array | None
) -> jax.Array:
    # jax never chooses cuDNN by itself, and with a mask cuDNN is slow: it reads one of (B, heads, N, M).
    if mask is None and jax.default_backend() == "gpu" and flash_fits(q):
        return flash(q, k, v, key_lengths)
    if jax.default_backend() == "cpu" and jax.device_count() == 1:  # parts of a batch that devices share would move
        return in_parts(q, k, v, mask, key_lengths)
    return plain(q, k, v, mask, key_lengths)


def _logits(q: jax.Array, k: jax.Array) -> jax.Array:
    return jnp.einsum("bhnd,bhmd->bhnm", q, k, preferred_element_type=jnp.float32) / q.shape[-1] ** 0.5


def _allowed(keys: int, mask: jax.Array | None, key_lengths: jax.Array | None) -> jax.Array | None:
    """What broadcasts to (B, heads, N, M): True = the pair takes part; None = all do."""
    masks = []
    if mask is not None:
        masks.append(mask[:, None, None] if mask.ndim == 2 else mask[:, None])
    if key_lengths is not None:
        masks.append((jnp.arange(keys) < key_lengths[:, None])[:, None, None])
    return None if not masks else masks[0] if len(masks) == 1 else masks[0] & masks[1]


def check_heads(width: int, num_heads: int) -> None:
    """Raise a UserError unless `width` divides into heads."""
    if num_heads < 1 or width % num_heads:
        raise UserError("model.num_heads", num_heads, f"does not divide hidden_size={width}; choose a divisor of it")


def rotary_angles(rows: int, columns: int, width: int) -> np.ndarray:
    """Angles by which 2-D axial rotary positions turn pairs of channels (Su et al. 2021; Heo et al. 2024, Sec. 3.1).

    Args:
        rows, columns: of the grid of tokens.
        width: of a head, a multiple of 4; the first half of its pairs follows the row, the second the column.

    Returns:
        (rows * columns, width / 2) float32, tokens in row-major order.

    Raises:
        UserError: width is not a multiple of 4.
    """
    if width % 4:
        raise UserError("model.positions", "rotary", f"needs a head width that is a multiple of 4, not {width}")
    frequencies = ROTARY_BASE ** (-np.arange(width // 4) / (width // 4))
    row, column = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    angles = [places.reshape(-1, 1) * frequencies for places in (row, column)]
    return np.concatenate(angles, axis=1).astype(np.float32)


def rotate(x: jax.Array, angles: jax.Array) -> jax.Array:
    """x (B, N, heads, width) with channels i and i + width / 2 turned by angles (N, width / 2)."""
    cos, sin = jnp.cos(angles)[:, None], jnp.sin(angles)[:, None]  # (N, 1, width / 2)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1).astype(x.dtype)


class RMSNorm(nn.Module):
    """x over its root mean square along the last axis, in float32, times a learned scale a channel."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x (..., D) -> (..., D) of the same dtype."""
        scale = self.param("scale", initializers.ones, (x.shape[-1],))
        return (rms_normalized(x) * scale).astype(x.dtype)


def rms_normalized(x: jax.Array) -> jax.Array:
    """x (..., D) over its root mean square along the last axis, float32."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-6)


class Projection(nn.Module):
    """Tokens -> queries, keys and values of heads, by one fused linear layer.

    Attributes:
        num_heads: must divide the width of the tokens.
        qk_norm: one of QK_NORMS, of each head's queries and keys, with a learned scale a channel that all heads
            share (Esser et al. 2024, Sec. 5.3.2).
        use_bias: of the linear layer.
        dtype: compute dtype.
    """

    num_heads: int
    qk_norm: str | None = None
    use_bias: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Tokens x (B, N, D) -> three of (B, N, heads, D / heads)."""
        b, n, d = x.shape
        dense = Split(3 * d, 3, use_bias=self.use_bias, dtype=self.dtype, kernel_init=initializers.xavier, name="qkv")
        q, k, v = (part.reshape(b, n, self.num_heads, d // self.num_heads) for part in dense(x))
        return normed(q, self.qk_norm, "query_norm"), normed(k, self.qk_norm, "key_norm"), v


def normed(x: jax.Array, kind: str | None, name: str) -> jax.Array:
    """x (B, N, heads, width) after the norm `kind` (one of QK_NORMS); only inside a compact module."""
    if kind == "rms":
        return RMSNorm(name=name)(x)
    if kind == "layer":
        return nn.LayerNorm(epsilon=1e-6, dtype=jnp.float32, name=name)(x).astype(x.dtype)
    return x


class SelfAttention(nn.Module):
    """Multi-head self-attention; fields as in `Projection`."""

    num_heads: int
    dtype: jnp.dtype = jnp.float32
    qk_norm: str | None = None
    use_bias: bool = True

    @nn.compact
    def __call__(
        self, x: jax.Array, angles: jax.Array | None = None, key_lengths: jax.Array | None = None
    ) -> jax.Array:
        """Tokens x (B, N, D), rotary angles (N, D / heads / 2) or none, how many count (B,) or all -> (B, N, D)."""
        q, k, v = Projection(self.num_heads, self.qk_norm, self.use_bias, self.dtype, name="project")(x)
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        sow_logit(self, q, k)
        h = attend(q, k, v, key_lengths=key_lengths).reshape(x.shape)
        return Dense(x.shape[-1], dtype=self.dtype, kernel_init=initializers.xavier, name="out")(h)


class CrossAttention(nn.Module):
    """Multi-head attention from tokens to a context; fields as in `Projection`."""

    num_heads: int
    dtype: jnp.dtype = jnp.float32
    qk_norm: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array, key_lengths: jax.Array | None = None) -> jax.Array:
        """Tokens x (B, N, D), context (B, M, D) and how many of its tokens count (B,) -> (B, N, D)."""
        b, n, d = x.shape
        dense = [
            Dense(times * d, dtype=self.dtype, kernel_init=initializers.xavier, name=name)
            for times, name in ((1, "query"), (2, "key_value"), (1, "out"))
        ]
        q = dense[0](x).reshape(b, n, self.num_heads, -1)
        k, v = jnp.moveaxis(dense[1](context).reshape(b, context.shape[1], 2, self.num_heads, -1), 2, 0)
        q, k = normed(q, self.qk_norm, "query_norm"), normed(k, self.qk_norm, "key_norm")
        sow_logit(self, q, k)
        return dense[2](attend(q, k, v, key_lengths=key_lengths).reshape(b, n, d))
