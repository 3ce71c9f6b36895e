"""A source whose examples hold the states of their captions, which a text cache has."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from archirf_jax import registry
from archirf_jax.data import fields, kept_captions
from archirf_jax.data.digests import digest
from archirf_jax.data.fields.text_states import KIND, STATES, TextStates
from archirf_jax.data.sources import Source, WithTexts
from archirf_jax.data.text_cache import EMPTY, TextCache
from archirf_jax.errors import UserError, listed
from archirf_jax.files import expand

SHOWN = 3  # captions that a message names


class StatedSource(WithTexts):
    """A source whose examples hold the states of their captions as well."""

    def __init__(
        self, inner: Source, cache: TextCache, field: TextStates, rows: np.ndarray, counts: np.ndarray
    ) -> None:
        """rows: of the cache, (N, captions); counts: (N,) int32, how many of them are the example's."""
        super().__init__(inner, field.feature, getattr(inner, "tokenizer", None))
        self._cache, self._name, self._rows, self._counts = cache, STATES + field.prefix, rows, counts

    def __getitem__(self, index: int) -> dict[str, Any]:
        states = self._cache.states(self._rows[index]) | {"caption_count": self._counts[index]}
        return self.inner[index] | {self._name: states}

    def digest(self) -> str:
        """That of the source, of how the encoder was asked, and of every caption."""
        return self._digest

    @functools.cached_property
    def _digest(self) -> str:
        header = dataclasses.asdict(self._cache.header)
        how = {name: value for name, value in header.items() if not name.startswith("captions")}
        captions = np.ascontiguousarray(self._cache.keys(self._rows)).view(np.uint8)
        return digest([self.inner.digest(), self._name, how, self._rows.shape, captions.data, self._counts.data])


def opened_caches(data: ConfigDict) -> Iterator[tuple[str, TextCache]]:
    """The names of the fields of states in `config.data` and their caches, which say what shapes these have.

    Raises:
        UserError: as `TextCache`.
    """
    for name, options in data.get("fields", {}).items():
        if options.get("name") == KIND:
            about = f"data.fields.{name}.cache"
            cache = TextCache(expand(options.get("cache") or "", about), about)
            known = {name: getattr(cache.header, name) for name in ("length", "width", "pooled_width")}
            with data.unlocked():
                options.update(ConfigDict(known | {"pooled_width": known["pooled_width"] or 0}))
            yield name, cache


def take_states(data: ConfigDict, source: Source) -> Source:
    """The source with the states of its captions, where `config.data` has fields of them; else as it is.

    Raises:
        UserError: images without a caption, unless data.fields.NAME.null_text, no such feature, or captions that the
            cache does not have.
    """
    for name, cache in opened_caches(data):
        about, options = f"data.fields.{name}", data.fields[name].to_dict()
        given = {option: value for option, value in options.items() if option != "name"}
        field: TextStates = registry.build(fields, f"{about}.name", KIND, given)
        texts = kept_captions.texts(source, field.feature, field.null_text, about)
        most = field.captions or max(1, max(map(len, texts)))
        kept_captions.report_more(texts, most)
        with data.unlocked():
            data.fields[name].captions = most
        rows, counts = _rows(cache, [row[:most] or [EMPTY] for row in texts], most, about)
        source = StatedSource(source, cache, field, rows, counts)
    return source


def _rows(cache: TextCache, texts: list[list[str]], most: int, about: str) -> tuple[np.ndarray, np.ndarray]:
    """(rows of the cache (N, most), where there are fewer captions that of the empty text; how many there are (N,))."""
    counts = np.asarray([len(row) for row in texts], np.int32)
    every = [text for row in texts for text in row]
    found = cache.rows(every)
    if absent := list(dict.fromkeys(text for text, row in zip(every, found, strict=True) if row < 0)):
        named = listed([repr(text[:60]) for text in absent], most=SHOWN)
        what = f"does not hold {len(absent)} of the set's captions: {named}; make a cache of this set and split"
        raise UserError(f"{about}.cache", str(cache.folder), what)
    rows = np.full((len(texts), most), cache.rows([EMPTY])[0], np.int64)
    rows[np.arange(most) < counts[:, None]] = found
    return rows, counts
