"""Text caches and the encoders that they are of: made, and fitted to a training."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from absl import logging

from archirf_jax.conditioners import text
from archirf_jax.contracts import Frozen
from archirf_jax.data import kept_captions, text_cache, tokenizer
from archirf_jax.data.text_cache import Arrays, Header, TextCache
from archirf_jax.data.text_source import opened_caches
from archirf_jax.data.tokenizer import Tokenizer
from archirf_jax.errors import UserError
from archirf_jax.launch.runs import Run, open_run

KIND = "text"  # the conditioner of a frozen encoder
PART = 65_536  # captions that become tokens at a time
DEFAULTS = {"length": None, "tokens": "tokens", "pooled": None, "masked": True}  # of the conditioner


def make_cache(run: Run, source: Any, out: pathlib.Path, batch_size: int, feature: str, **fields: Any) -> Header:
    """Encode every caption of a set once; what was encoded before a kill is not encoded again.

    Args:
        run: of the text encoder.
        source: the set, of which nothing but captions is read.
        out: folder of the cache.
        batch_size: captions at a time.
        feature: the name of the captions in the set.
        fields: those of the conditioner `text` named in DEFAULTS; without a length it is that of the longest caption.

    Raises:
        UserError: the run is not of a text encoder, the set has no such captions, or the folder holds something else.
    """
    _check_encoder(run)
    texts = {each.strip() for row in kept_captions.written(source, feature) for each in row}
    fields = DEFAULTS | fields
    fields["length"] = fields["length"] or _longest(run, sorted(texts))
    conditioner = text.build({text.RUN: run}, **fields)
    words = tokenizer.of_run(run.directory, run.config.tokenizer, fields["length"])
    frozen = jax.device_put({text.RUN: run.params})

    @jax.jit
    def compute(frozen: Frozen, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return conditioner(frozen, batch, jax.random.split(jax.random.key(0), batch_size))

    def encode(texts: list[str]) -> Arrays:
        return jax.tree.map(np.asarray, compute(frozen, words(texts)))

    shapes = jax.eval_shape(compute, frozen, words([""] * batch_size))
    widths = {"width": shapes["tokens"].shape[-1], "pooled_width": None}
    if "pooled" in shapes:
        widths["pooled_width"] = shapes["pooled"].shape[-1]
    header = text_cache.make(out, texts, encode, fields | widths | {"encoder": run.digest()}, batch_size)
    logging.info("%s: %d captions, %d tokens of width %d each", out, header.captions, header.length, header.width)
    return header


def fit(config: Any, runs: Mapping[str, Run]) -> None:
    """Let conditioners of texts take what the caches that a configuration names hold, if it names any.

    Raises:
        UserError: no conditioner takes it, or the cache was made by another encoder, or in another way.
    """
    for field, cache in opened_caches(config.data):
        name, group = _conditioner(config, field)
        run = runs.get(group.get("run", text.RUN))
        if run is not None and run.digest() != cache.header.encoder:
            what = f"was made by another text encoder than {str(run.directory)!r}; name that one, or make another cache"
            raise UserError(f"data.fields.{field}.cache", str(cache.folder), what)
        given = DEFAULTS | group.to_dict()
        for option in DEFAULTS:
            there, wanted = getattr(cache.header, option), given[option]
            if wanted is None or wanted == there:
                continue
            what = f"is not what {str(cache.folder)!r} was made with, {there!r}; take that, or make another cache"
            raise UserError(f"conditioners.{name}.{option}", wanted, what)
        with config.unlocked(), config.ignore_type():
            group.length = cache.header.length


def nulls(config: Any) -> Frozen:
    """By frozen run, its answer to no text, where a cache has all the others: its parameters are not needed."""
    found = {}
    for field, cache in opened_caches(config.data):
        group = _conditioner(config, field)[1]
        found[group.get("run", text.RUN)] = {text.NULL: _used(cache, group)}
    readers = [group.get("run", text.RUN) for group in config.conditioners.values() if group.get("name") == KIND]
    return {name: null for name, null in found.items() if readers.count(name) == 1}


def encoder(place: pathlib.Path, field: str) -> Run:
    """The run of a text encoder; raises a UserError where there is none."""
    run = open_run(place, field=field)
    _check_encoder(run, field)
    return run


def _used(cache: TextCache, group: Any) -> Arrays:
    wanted = ("tokens", "mask", "pooled") if group.get("pooled") else ("tokens", "mask")
    return {name: array for name, array in cache.empty().items() if name in wanted}


def _conditioner(config: Any, field: str) -> tuple[str, Any]:
    """(name, group) of the conditioner that takes the states of a field."""
    prefix = config.data.fields[field].get("prefix", "")
    for name, group in config.conditioners.items():
        if group.get("name") == KIND and group.get("prefix", "") == prefix:
            return name, group
    what = f"is of the prefix {prefix!r}, and no conditioner takes it: --config.conditioners.{field}.name={KIND}"
    raise UserError(f"data.fields.{field}.prefix", prefix, what)


def _check_encoder(run: Run, field: str = "text_encoder") -> None:
    if run.config.get("tokenizer") is None:
        what = "is not the run of a text encoder with a tokenizer; import one by --source=clip-text, t5 or minilm"
        raise UserError(field, str(run.directory), what)


def _longest(run: Run, texts: list[str]) -> int:
    """Tokens of the longest text, at most as many as the encoder takes, and room for one after those of no text."""
    group = run.config.tokenizer
    words = tokenizer.of_run(run.directory, group)
    return min(group["length"], max(len(group["empty"]) + 1, *_counts(words, texts)))


def _counts(words: Tokenizer, texts: list[str]) -> Iterator[int]:
    yield 1
    for first in range(0, len(texts), PART):
        yield int(words(texts[first : first + PART])["mask"].sum(axis=1).max())
