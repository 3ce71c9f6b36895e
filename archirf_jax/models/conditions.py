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
from archirf_jax.models import initializers, layers
from archirf_jax.models.linear import Dense

CONTEXTS = ("class_tokens", "class_table", "text")
LONGEST = 65_536  # learned tokens that stand for no text
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
    _check_width(tokens, width)
    if "mask" not in condition:
        return tokens, None
    mask = condition["mask"].astype(bool)
    order = jnp.argsort(~mask, axis=1)[..., None]
    tokens = jnp.where(mask[..., None], tokens, jnp.zeros((), tokens.dtype))
    return jnp.take_along_axis(tokens, order, axis=1), jnp.sum(mask, axis=1, dtype=jnp.int32)


def pooled_text(condition: Condition, width: int) -> jax.Array:
    """A text's pooled vector (B, width).

    Raises:
        UserError: there is none, or it has another width.
    """
    pooled = layers.entry(condition, "pooled")
    layers.check_entry("pooled_width", width, pooled)
    return pooled


def with_null(module: nn.Module, condition: Condition, count: int, width: int, pooled: int | None = None) -> Condition:
    """The condition with a learned text in the place of those that are not there, whose mask is all False.

    Saharia et al. 2022 ("Photorealistic Text-to-Image Diffusion Models", Imagen) learn what stands for no text.

    Args:
        module: whose parameters "null_tokens" (count, width) and "null_pooled" (pooled,) stand for no text.
        condition: "tokens" (B, L, width), "mask" (B, L), and with `pooled` "pooled" (B, pooled).
        count: tokens that stand for no text; 0 = the condition stays as it is.
        width: of the tokens.
        pooled: width of pooled vectors; None = there are none.

    Returns:
        The condition, its texts as long as the longer of L and `count`.

    Raises:
        UserError: there is no mask, or the tokens have another width.
    """
    if not count:
        return condition
    mask, tokens = (layers.entry(condition, name) for name in ("mask", "tokens"))
    _check_width(tokens, width)
    absent = ~jnp.any(mask.astype(bool), axis=1)
    more = max(0, count - tokens.shape[1])
    tokens, mask = jnp.pad(tokens, ((0, 0), (0, more), (0, 0))), jnp.pad(mask.astype(bool), ((0, 0), (0, more)))
    null = module.param("null_tokens", initializers.small_normal, (count, width))
    null = jnp.pad(null, ((0, tokens.shape[1] - count), (0, 0))).astype(tokens.dtype)
    found = {"tokens": jnp.where(absent[:, None, None], null, tokens)}
    found["mask"] = jnp.where(absent[:, None], jnp.arange(tokens.shape[1]) < count, mask)
    if pooled is not None:
        vector = layers.entry(condition, "pooled")
        own = module.param("null_pooled", initializers.small_normal, (pooled,)).astype(vector.dtype)
        found["pooled"] = jnp.where(absent[:, None], own, vector)
    return {**condition, **found}


def check_null_tokens(count: int, reads_texts: bool, field: str) -> None:
    """Raise a UserError about learned tokens for no text in a network that reads none unless `field` is set."""
    if count and not reads_texts:
        raise UserError("model.null_tokens", count, f"stands for no text, and the network reads none: set {field}")
    if count > LONGEST:
        raise UserError("model.null_tokens", count, f"must be at most {LONGEST:_}")


def _check_width(tokens: jax.Array, width: int) -> None:
    if tokens.shape[-1] != width:
        raise UserError("model.context_width", width, f"is not the width of the tokens, {tokens.shape[-1]}")


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
        null_tokens: learned tokens that stand for a text whose mask is all False, with a pooled vector; 0 = none do.
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
    null_tokens: int = 0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, condition: Condition) -> tuple[jax.Array, jax.Array | None, jax.Array | float]:
        """Labels or texts -> tokens (B, L, width), how many count (B,) (None = all), vector (B, width).

        Raises:
            UserError: conditions that are missing or of another width.
        """
        embed = layers.VectorEmbedder(self.width, self.dtype, name="pooled")
        if self.kind == "text":
            width = self.context_width or self.width
            condition = with_null(self, condition, self.null_tokens, width, self.pooled_width)
            tokens, lengths = self._text(condition)
            return tokens, lengths, embed(pooled_text(condition, self.pooled_width)) if self.pooled_width else 0.0
        tokens = self._labels(layers.entry(condition, "label"))
        return tokens, None, embed(jnp.mean(tokens, axis=1))

    def _text(self, condition: Condition) -> tuple[jax.Array, jax.Array | None]:
        tokens, lengths = pack(condition, self.context_width or self.width)
        tokens = self._projected(tokens) if self.context_width else tokens.astype(self.dtype)
        if lengths is not None:
            there = jnp.arange(tokens.shape[1]) < lengths[:, None]
            tokens = jnp.where(there[..., None], tokens, jnp.zeros((), tokens.dtype))
        return tokens, lengths

    def _labels(self, y: jax.Array) -> jax.Array:
        classes = self._positive("num_classes")
        self._positive("class_tokens")
        if self.kind == "class_tokens":
            shape = (classes + 1, self.class_tokens, self.width)
            return self.param("class_tokens", initializers.small_normal, shape)[y].astype(self.dtype)
        shape = (classes, self.class_tokens, self._positive("class_width"))
        table = self.param("frozen_table", lambda key: from_file(self.class_embeddings or "", shape))
        null = self.param("null_tokens", initializers.small_normal, shape[1:])
        known = (y < classes)[:, None, None]
        tokens = jnp.where(known, jax.lax.stop_gradient(table)[jnp.minimum(y, classes - 1)], null)
        positions = self.param("token_positions", initializers.small_normal, (self.class_tokens, self.width))
        return self._projected(tokens) + positions.astype(self.dtype)

    def _positive(self, name: str) -> int:
        value: int | None = getattr(self, name)
        if value is None or value < 1:
            raise UserError(f"model.{name}", value, f"must be above 0 for context {self.kind!r}")
        return value

    def _projected(self, tokens: jax.Array) -> jax.Array:
        return Dense(self.width, dtype=self.dtype, kernel_init=initializers.xavier, name="tokens")(tokens)


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
