"""Captions as what a frozen text encoder made of them beforehand, so that no text is encoded while a run goes on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from archirf_jax.data.fields.caption import KIND as DRAWN_AS
from archirf_jax.data.fields.caption import drawn
from archirf_jax.errors import UserError

KIND = "text_states"  # this file
STATES = "text states "  # in the source, before the prefix: {"tokens", "mask", "pooled", "caption_count"}


@dataclasses.dataclass(frozen=True)
class TextStates:
    """The states of an image's captions, of which each epoch sees one that is drawn by the batch's key.

    The draw is that of a field called "caption", so that several caches, and ids, are of one caption.

    Attributes:
        cache: folder of the text cache, made by prepare_data with --text_encoder.
        feature: the name of the captions in the set.
        prefix: of all keys, for several encoders; that of the conditioner.
        null_text: whether an image without a caption has the null text, "", instead of being refused.
        captions: most captions of an image; None = as many as one has.
        length, width, pooled_width: of the states; None = as the cache says, where 0 stands for no pooled vector.
    """

    cache: str
    feature: str = "caption"
    prefix: str = ""
    null_text: bool = False
    captions: int | None = None
    length: int | None = None
    width: int | None = None
    pooled_width: int | None = None
    draws = False  # the caption is drawn on the device
    drawn_as = DRAWN_AS

    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """{"tokens": (captions, L, D), "mask": (captions, L) bool, "pooled": (captions, P), "caption_count": () int32}.

        Tokens and pooled vectors are float16.

        Raises:
            UserError: the length is not known, because the cache has not been opened.
        """
        if self.length is None or self.width is None:
            what = "is missing: how many tokens a caption has; the cache, which is not open here, would say it"
            raise UserError("data.fields.text_states.length", message=what)
        most = self.captions or 1
        found: dict[str, Any] = {"tokens": ((most, self.length, self.width), np.float16)}
        found["mask"] = (most, self.length), np.bool_
        if self.pooled_width:
            found["pooled"] = (most, self.pooled_width), np.float16
        found["caption_count"] = (), np.int32
        return {f"{self.prefix}{name}": jax.ShapeDtypeStruct(*one) for name, one in found.items()}

    def decode(self, raw: Mapping[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Raises: UserError where the source was opened without the states."""
        del rng
        if STATES + self.prefix not in raw:
            raise UserError("data.fields", message="the set was opened without the states of its captions")
        return {f"{self.prefix}{name}": array for name, array in raw[STATES + self.prefix].items()}

    def finish(self, arrays: dict[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
        """{"tokens": (B, L, D) float16, "mask": (B, L) bool, "pooled": (B, P) float16} of a caption of each image."""
        counts = f"{self.prefix}caption_count"
        return drawn({name: each for name, each in arrays.items() if name != counts}, arrays[counts], key)


def build(
    cache: str,
    feature: str = "caption",
    prefix: str = "",
    null_text: bool = False,
    captions: int | None = None,
    length: int | None = None,
    width: int | None = None,
    pooled_width: int | None = None,
) -> TextStates:
    """The states of a set's captions; fields as of `TextStates`.

    Raises:
        UserError: no captions.
    """
    if captions is not None and captions < 1:
        raise UserError("data.fields.text_states.captions", captions, "must be 1 or more, or None")
    return TextStates(cache, feature, prefix, null_text, captions, length, width, pooled_width)
