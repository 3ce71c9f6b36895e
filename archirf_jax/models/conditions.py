"""What a transformer's context holds: texts from outside, learned tokens of classes, or a table of pretrained features.

text          {"tokens": (B, L, context_width), "pooled": (B, pooled_width)} of a text encoder
class_tokens  `class_tokens` learned embeddings a class
class_table   a fixed table (classes, tokens, class_width) of features of each class, which a linear layer projects
"""

from __future__ import annotations

import os
import zipfile
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from archirf_jax.errors import UserError
from archirf_jax.models import layers
from archirf_jax.models.linear import Dense

CONTEXTS = ("class_tokens", "class_table", "text")
TABLE = "table"  # the array's name in a file of class embeddings


class Context(nn.Module):
    """Conditions -> tokens and a pooled vector.

    Attributes:
        kind: one of CONTEXTS.
        num_classes: labels are 0..num_classes-1, the null label is num_classes.
        width: of the tokens that come out.
        class_tokens: tokens a class.
        class_width: of the table's features.
        class_embeddings: .npz file that the table is read from when parameters are made.
        context_width: of text tokens; 0 = `width`, and they are not projected.
        pooled_width: of pooled text vectors; 0 = there are none.
        dtype: compute dtype.
    """

    kind: str
    num_classes: int
    width: int
    class_tokens: int = 2
    class_width: int = 0
    class_embeddings: str = ""
    context_width: int = 0
    pooled_width: int = 0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, y: Any) -> tuple[jax.Array, jax.Array | float]:
        """Labels (B,) int32 or texts -> tokens (B, L, width), vector (B, width)."""
        tokens = self._text(y) if self.kind == "text" else self._labels(y)
        pooled = y.get("pooled") if self.kind == "text" else jnp.mean(tokens, axis=1)
        return tokens, 0.0 if pooled is None else layers.VectorEmbedder(self.width, self.dtype, name="pooled")(pooled)

    def _text(self, y: Any) -> jax.Array:
        if not isinstance(y, dict) or "tokens" not in y:
            raise UserError("config.model.context: text needs conditions with tokens and pooled, not labels")
        expected = {"tokens": self.context_width or self.width} | (
            {"pooled": self.pooled_width} if self.pooled_width else {}
        )
        found = {name: value.shape[-1] for name, value in y.items()}
        if found != expected:
            raise UserError(f"conditions of widths {found} do not fit config.model, which takes {expected}")
        return self._projected(y["tokens"]) if self.context_width else y["tokens"].astype(self.dtype)

    def _labels(self, y: jax.Array) -> jax.Array:
        if self.class_tokens < 1:
            raise UserError(f"config.model.class_tokens: {self.class_tokens} must be above 0")
        if self.kind == "class_tokens":
            shape = (self.num_classes + 1, self.class_tokens, self.width)
            return self.param("class_tokens", layers.small_normal, shape)[y].astype(self.dtype)
        if self.class_width < 1:
            raise UserError(f"config.model.class_width: {self.class_width} must be above 0 for context class_table")
        shape = (self.num_classes, self.class_tokens, self.class_width)
        table = self.param("frozen_table", lambda key: from_file(self.class_embeddings, shape))
        null = self.param("null_tokens", layers.small_normal, shape[1:])
        known = (y < self.num_classes)[:, None, None]
        tokens = jnp.where(known, jax.lax.stop_gradient(table)[jnp.minimum(y, self.num_classes - 1)], null)
        positions = self.param("token_positions", layers.small_normal, (self.class_tokens, self.width))
        return self._projected(tokens) + positions.astype(self.dtype)

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
                f"config.model.class_embeddings: the table in {path!r} has the shape {found.shape}, but num_classes, "
                f"class_tokens and class_width are {shape}"
            )
        return found.astype(np.float32)

    if os.path.exists(path):  # a run whose checkpoint has the table needs no file
        table()
    return jax.pure_callback(table, jax.ShapeDtypeStruct(shape, jnp.float32))


def read_table(path: str) -> np.ndarray:
    """(classes, tokens, width) of a file of class embeddings.

    Raises:
        UserError: no such file, or none with such a table.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            table = archive[TABLE]
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as e:
        raise UserError(
            f"config.model.class_embeddings: {path!r} is no .npz file with an array {TABLE!r}; make one by "
            "python -m archirf_jax.prepare_data --class_embeddings"
        ) from e
    if table.ndim != 3:
        raise UserError(
            f"config.model.class_embeddings: the table in {path!r} has the shape {table.shape}; it must be "
            "(classes, tokens, width)"
        )
    return table
