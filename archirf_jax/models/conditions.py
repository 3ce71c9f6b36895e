"""What a transformer's context holds: texts, learned tokens of classes, or a table of pretrained features.

text          "tokens" (B, L, context_width), "mask" (B, L) and "pooled" (B, pooled_width) of a text encoder
class_tokens  `class_tokens` learned embeddings of each "label"
class_table   a fixed table (classes, tokens, class_width) of features of each "label", which a linear layer projects
"""

from __future__ import annotations

import os
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from archirf_jax import untrusted
from archirf_jax.contracts import Condition
from archirf_jax.errors import UserError
from archirf_jax.models import layers
from archirf_jax.models.linear import Dense

CONTEXTS = ("class_tokens", "class_table", "text")
TABLE = "table"  # the array's name in a file of class embeddings


def pack(condition: Condition, width: int) -> tuple[jax.Array, jax.Array | None]:
    """A text's tokens, those under its mask first and zeros after them, and how many those are.

    Attention does not depend on the order of the text's tokens, and with key lengths it is faster than with a mask.

    Args:
        condition: "tokens" (B, L, width) and maybe "mask" (B, L).
        width: what the network takes.

    Returns:
        (B, L, width), (B,) int32; None = all tokens count.

    Raises:
        UserError: no tokens, or tokens of another width.
    """
    tokens = layers.entry(condition, "tokens")
    if tokens.shape[-1] != width:
        raise UserError("model.context_width", width, f"is not the width of the tokens, {tokens.shape[-1]}")
    if "mask" not in condition:
        return tokens, None
    mask = condition["mask"].astype(bool)
    order = jnp.argsort(~mask, axis=1)[..., None]
    tokens = jnp.where(mask[..., None], tokens, jnp.zeros((), tokens.dtype))
    return jnp.take_along_axis(tokens, order, axis=1), jnp.sum(mask, axis=1, dtype=jnp.int32)


class Context(nn.Module):
    """Conditions -> tokens, how many of them count, and a pooled vector.

    Attributes:
        kind: one of CONTEXTS.
        num_classes: labels are 0..num_classes-1, the null label is num_classes; texts need none.
        width: of the tokens that come out.
        class_tokens: tokens a class.
        class_width: of the table's features.
        class_embeddings: .npz file that the table is read from when parameters are made.
        context_width: of text tokens; None = `width`, and they are not projected.
        pooled_width: of pooled text vectors; None = there are none.
        dtype: compute dtype.
    """

    kind: str
    num_classes: int | None
    width: int
    class_tokens: int = 2
    class_width: int | None = None
    class_embeddings: str | None = None
    context_width: int | None = None
    pooled_width: int | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, condition: Condition) -> tuple[jax.Array, jax.Array | None, jax.Array | float]:
        """Labels or texts -> tokens (B, L, width), how many count (B,) (None = all), vector (B, width).

        Raises:
            UserError: conditions that are missing or of another width.
        """
        embed = layers.VectorEmbedder(self.width, self.dtype, name="pooled")
        if self.kind == "text":
            tokens, lengths = self._text(condition)
            return tokens, lengths, embed(self._pooled(condition)) if self.pooled_width else 0.0
        tokens = self._labels(layers.entry(condition, "label"))
        return tokens, None, embed(jnp.mean(tokens, axis=1))

    def _text(self, condition: Condition) -> tuple[jax.Array, jax.Array | None]:
        tokens, lengths = pack(condition, self.context_width or self.width)
        tokens = self._projected(tokens) if self.context_width else tokens.astype(self.dtype)
        if lengths is not None:
            there = jnp.arange(tokens.shape[1]) < lengths[:, None]
            tokens = jnp.where(there[..., None], tokens, jnp.zeros((), tokens.dtype))
        return tokens, lengths

    def _pooled(self, condition: Condition) -> jax.Array:
        pooled = layers.entry(condition, "pooled")
        if pooled.shape[-1] != self.pooled_width:
            raise UserError("model.pooled_width", self.pooled_width, f"is not pooled texts' width, {pooled.shape[-1]}")
        return pooled

    def _labels(self, y: jax.Array) -> jax.Array:
        classes = self._positive("num_classes")
        self._positive("class_tokens")
        if self.kind == "class_tokens":
            shape = (classes + 1, self.class_tokens, self.width)
            return self.param("class_tokens", layers.small_normal, shape)[y].astype(self.dtype)
        shape = (classes, self.class_tokens, self._positive("class_width"))
        table = self.param("frozen_table", lambda key: from_file(self.class_embeddings or "", shape))
        null = self.param("null_tokens", layers.small_normal, shape[1:])
        known = (y < classes)[:, None, None]
        tokens = jnp.where(known, jax.lax.stop_gradient(table)[jnp.minimum(y, classes - 1)], null)
        positions = self.param("token_positions", layers.small_normal, (self.class_tokens, self.width))
        return self._projected(tokens) + positions.astype(self.dtype)

    def _positive(self, name: str) -> int:
        value: int | None = getattr(self, name)
        if value is None or value < 1:
            raise UserError(f"model.{name}", value, f"must be above 0 for context {self.kind!r}")
        return value

    def _projected(self, tokens: jax.Array) -> jax.Array:
        return Dense(self.width, dtype=self.dtype, kernel_init=layers.xavier, name="tokens")(tokens)


def from_file(path: str, shape: tuple[int, ...]) -> jax.Array:
    """The table of a file of class embeddings, read when a program runs, so that none carries it as a constant.

    Raises:
        UserError: a table of another shape, before anything is compiled.
    """

    def table() -> np.ndarray:
        found = read_table(path)
        if found.shape != shape:
            raise UserError(
                "model.class_embeddings",
                path,
                f"holds a table of shape {found.shape}, but num_classes, class_tokens and class_width are {shape}",
            )
        return found.astype(np.float32)

    if os.path.exists(path):  # a run whose checkpoint has the table needs no file
        table()
    return jax.pure_callback(table, jax.ShapeDtypeStruct(shape, jnp.float32))


def read_table(path: str) -> np.ndarray:
    """(classes, tokens, width) of a file of class embeddings.

    Raises:
        UserError: no such file, or one without such a table.
    """
    try:
        table = untrusted.read_arrays(pathlib.Path(path))[TABLE]
    except (untrusted.Unreadable, KeyError) as e:
        raise UserError(
            "model.class_embeddings",
            path,
            f"is not an .npz file with an array {TABLE!r}; make one by "
            "python -m archirf_jax.prepare_data --class_embeddings",
        ) from e
    if table.ndim != 3:
        raise UserError(
            "model.class_embeddings",
            path,
            f"holds a table of shape {table.shape}; it must be (classes, tokens, width)",
        )
    if not untrusted.finite(table):
        what = f"holds {table.dtype} that are nan, infinite as float32, or not real numbers"
        raise UserError("model.class_embeddings", path, what)
    return table
