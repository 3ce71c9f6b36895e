"""Captions: the ids of their tokens, made when the set is opened, so that no text is handled while a run goes on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from archirf_jax.errors import UserError

KIND = "caption"  # this file
TOKENS = "caption tokens"  # in the source: {"ids", "mask", "caption_count"}
IDS, MASK, COUNT = "ids", "mask", "caption_count"


@dataclasses.dataclass(frozen=True)
class Caption:
    """The captions of an image, of which each epoch sees one that is drawn by the batch's key.

    Attributes:
        feature: the name of the captions in the set.
        tokenizer: tokenizer.json, or a folder or a run that holds one; None = the set's own, made of its words.
        length: tokens of a caption; None = as the tokenizer says.
        pad_id: id that fills shorter captions; None = as the tokenizer says.
        captions: most captions of an image; None = as many as one has.
        null_text: whether an image without a caption has the null text, "", instead of being refused.
    """

    feature: str = "caption"
    tokenizer: str | None = None
    length: int | None = None
    pad_id: int | None = None
    captions: int | None = None
    null_text: bool = False
    draws = False  # the caption is drawn on the device

    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """{"ids": (captions, L) int32, "mask": (captions, L) bool, "caption_count": () int32}.

        Raises:
            UserError: the length is not known, because the set has not been opened.
        """
        if self.length is None:
            what = "is missing: how many tokens a caption has; the set, which is not open here, would say it"
            raise UserError("data.fields.caption.length", message=what)
        shape = self.captions or 1, self.length
        found = {IDS: (shape, np.int32), MASK: (shape, np.bool_), COUNT: ((), np.int32)}
        return {name: jax.ShapeDtypeStruct(*one) for name, one in found.items()}

    def decode(self, raw: Mapping[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Raises: UserError where the source was opened without captions."""
        del rng
        if TOKENS not in raw:
            raise UserError("data.fields", message="the set was opened without its captions")
        return dict(raw[TOKENS])

    def finish(self, arrays: dict[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
        """{"ids": (B, L) int32, "mask": (B, L) bool} of one caption of each image."""
        return drawn({IDS: arrays[IDS], MASK: arrays[MASK]}, arrays[COUNT], key)


def drawn(arrays: Mapping[str, jax.Array], counts: jax.Array, key: jax.Array) -> dict[str, jax.Array]:
    """What belongs to one caption of each image.

    Args:
        arrays: (B, captions, ...) by name.
        counts: (B,) how many captions an image has.
        key: the same for all that belongs to one caption.

    Returns:
        (B, ...) by name.
    """
    if next(iter(arrays.values())).shape[1] == 1:
        return {name: each[:, 0] for name, each in arrays.items()}
    chosen = jax.random.randint(key, counts.shape, 0, counts)

    def one(each: jax.Array) -> jax.Array:
        return jnp.take_along_axis(each, chosen.reshape(-1, *[1] * (each.ndim - 1)), axis=1)[:, 0]

    return {name: one(each) for name, each in arrays.items()}


def build(
    feature: str = "caption",
    tokenizer: str | None = None,
    length: int | None = None,
    pad_id: int | None = None,
    captions: int | None = None,
    null_text: bool = False,
) -> Caption:
    """The captions of a set; fields as of `Caption`.

    Raises:
        UserError: no tokens or no captions.
    """
    for name, value in (("length", length), ("captions", captions)):
        if value is not None and value < 1:
            raise UserError(f"data.fields.caption.{name}", value, "must be 1 or more, or None")
    return Caption(feature, tokenizer, length, pad_id, captions, null_text)
