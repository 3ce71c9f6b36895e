"""Captions of a set become tokens once, when the set is opened."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from archirf_jax import registry
from archirf_jax.data import fields, kept_captions, vocabulary
from archirf_jax.data.digests import digest
from archirf_jax.data.fields.caption import COUNT, IDS, KIND, MASK, TOKENS, Caption
from archirf_jax.data.sources import Source, WithTexts
from archirf_jax.data.tfds_source import TfdsSource, how_to_prepare
from archirf_jax.data.tokenizer import FILE, Tokenizer
from archirf_jax.errors import UserError
from archirf_jax.files import expand

PART = 65_536  # captions at a time


class CaptionedSource(WithTexts):
    """A source whose examples hold the tokens of their captions as well."""

    tokenizer: Tokenizer

    def __init__(self, inner: Source, tokenizer: Tokenizer, feature: str, tokens: dict[str, np.ndarray]) -> None:
        """tokens: "ids" (N, captions, L) int32, "mask" likewise bool, and "caption_count" (N,) int32."""
        super().__init__(inner, feature, tokenizer)
        self._tokens = tokens

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.inner[index] | {TOKENS: {name: array[index] for name, array in self._tokens.items()}}

    def digest(self) -> str:
        """That of the source, the tokenizer and every token."""
        return self._digest

    @functools.cached_property
    def _digest(self) -> str:
        tokens = (np.ascontiguousarray(array).data for array in self._tokens.values())
        shapes = [array.shape for array in self._tokens.values()]
        return digest([self.inner.digest(), self.tokenizer.digest, shapes, *tokens])


def take_captions(data: ConfigDict, source: Source) -> Source:
    """The source with the tokens of its captions, where `config.data` has a field of captions; else as it is.

    What that field leaves open, such as the length, is filled in.

    Raises:
        UserError: images without a caption, unless data.fields.NAME.null_text, no such feature, or no tokenizer.
    """
    name = next((name for name, options in data.fields.items() if options.get("name") == KIND), None)
    if name is None:
        return source
    about, given = f"data.fields.{name}", data.fields[name].to_dict()
    options = {option: value for option, value in given.items() if option != "name"}
    field: Caption = registry.build(fields, f"{about}.name", KIND, options)
    texts = kept_captions.texts(source, field.feature, field.null_text, about)
    tokenizer = _tokenizer(field, source, texts, about, data)
    most = field.captions or max(1, max(map(len, texts)))
    kept_captions.report_more(texts, most)
    with data.unlocked():
        known = {"length": tokenizer.length, "pad_id": tokenizer.padding, "captions": most}
        data.fields[name].update(ConfigDict(known))
    tokens = _tokenized([row[:most] or [""] for row in texts], most, tokenizer)
    return CaptionedSource(source, tokenizer, field.feature, tokens)


def _tokenizer(field: Caption, source: Source, texts: Sequence[Sequence[str]], about: str, data: Any) -> Tokenizer:
    """The tokenizer that the field names, or the set's own."""
    if field.tokenizer is not None:
        place = expand(field.tokenizer, f"{about}.tokenizer")
        return vocabulary.opened(place, about, field.length, field.pad_id)
    if not isinstance(source, TfdsSource):
        return vocabulary.of_words([text for row in texts for text in row], field.length)
    if not (source.folder / FILE).exists():
        what = f"is missing; name a {FILE}, or, where the set has the texts {KIND!r}, for one of their words "
        what += how_to_prepare(data.name, data.dir)
        raise UserError(f"{about}.tokenizer", message=what)
    return vocabulary.opened(source.folder, about, field.length, field.pad_id)


def _tokenized(texts: Sequence[Sequence[str]], most: int, tokenizer: Tokenizer) -> dict[str, np.ndarray]:
    """{"ids": (N, most, L), "mask": likewise, "caption_count": (N,)} of 1 to `most` texts of each example."""
    counts = np.asarray([len(row) for row in texts], np.int32)
    every = [text for row in texts for text in row]
    parts = [tokenizer(every[first : first + PART]) for first in range(0, len(every), PART)]
    shape = len(texts), most, tokenizer.length
    found = {IDS: np.full(shape, tokenizer.padding, np.int32), MASK: np.zeros(shape, bool)}
    held = np.arange(shape[1]) < counts[:, None]
    for name, array in found.items():
        array[held] = np.concatenate([part[name] for part in parts])
    return found | {COUNT: counts}
