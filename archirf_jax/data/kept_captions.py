"""The captions of a set as texts, one and all; those of a prepared set are kept, so that its records are read once."""

from __future__ import annotations

import concurrent.futures
import contextlib
import pathlib
from collections.abc import Sequence

from absl import logging

from archirf_jax import untrusted
from archirf_jax.data import kept_texts
from archirf_jax.data.digests import digest
from archirf_jax.data.sources import Source
from archirf_jax.data.tfds_source import TfdsSource
from archirf_jax.errors import UserError, listed
from archirf_jax.files import cache

VERSION = "1"  # of what is kept
SHOWN = 5  # images without a caption that a message names
PART = 65_536  # examples at a time


def texts(source: Source, feature: str, null_text: bool, about: str) -> list[list[str]]:
    """The captions of every example that say something.

    Args:
        source: of N examples.
        feature: the name of the captions in it.
        null_text: whether an example may have none.
        about: the field of the configuration, for messages.

    Raises:
        UserError: an example has none, and the null text is not to take its place.
    """
    found = [[text.strip() for text in row if text.strip()] for row in written(source, feature)]
    missing = [index for index, row in enumerate(found) if not row]
    if not missing:
        return found
    named = listed([source.describe(index) for index in missing[: SHOWN + 1]], most=SHOWN)
    what = f"{len(missing)} of {len(found)} images have no caption: {named}"
    if not null_text:
        raise UserError(about, message=f"{what}; write them, or set {about}.null_text=True to take the null text")
    logging.warning("%s; they have the null text", what)
    return found


def written(source: Source, feature: str) -> list[list[str]]:
    """The captions of every example as they were written.

    Raises:
        UserError: the set has no such feature, or its captions are damaged.
    """
    place = _place(source, feature)
    if place is None:
        return _read(source, feature)
    with contextlib.suppress(untrusted.Unreadable):
        return [row[feature] for row in kept_texts.read(place, len(source), [feature])]
    found = _read(source, feature)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        kept_texts.write(place, ({feature: row} for row in found))
    except OSError as e:
        logging.warning("the captions are not kept in %s: %s", place.parent, e.strerror or e)
    return found


def report_more(found: Sequence[Sequence[str]], most: int) -> None:
    """Warn where images have more captions than are taken."""
    more = sum(len(row) > most for row in found)
    if more:
        logging.warning("%d images have more than %d captions, and the first ones are taken", more, most)


def _read(source: Source, feature: str) -> list[list[str]]:
    found: list[list[str]] = []
    with concurrent.futures.ThreadPoolExecutor() as pool:
        for first in range(0, len(source), PART):
            part = range(first, min(first + PART, len(source)))
            found += pool.map(lambda index: source.captions(index, feature), part)
    return found


def _place(source: Source, feature: str) -> pathlib.Path | None:
    """Where captions are kept; None for sets whose captions are quick to read.

    A set that was prepared anew has files of another time, and so another place.
    """
    if not isinstance(source, TfdsSource) or feature not in source.texts:
        return None
    return cache("captions") / f"{digest([VERSION, source.digest(), feature, source.stamps()])[:32]}.npz"
