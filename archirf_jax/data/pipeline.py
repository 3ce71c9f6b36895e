"""From a configuration to a data set that is open, checked and, where it fits, decoded."""

from __future__ import annotations

import concurrent.futures
import datetime
import math
import os
import time
from typing import Any

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from archirf_jax.data import checks
from archirf_jax.data import fields as field_functions
from archirf_jax.data.captions import take_captions
from archirf_jax.data.checks import Checks
from archirf_jax.data.dataset import Dataset
from archirf_jax.data.feeds import ResidentFeed, StreamFeed, make_feed
from archirf_jax.data.fields import LATENTS, Arrays, Fields, make_fields
from archirf_jax.data.images import UNREADABLE, check_channels
from archirf_jax.data.latent_source import LatentSource
from archirf_jax.data.sources import Source, open_source
from archirf_jax.data.text_source import take_states
from archirf_jax.errors import UserError

__all__ = ["Dataset", "ResidentFeed", "StreamFeed", "load", "load_source", "make_feed"]

REPORT_SECONDS = 5  # between two messages of how far the check of a set is
WINDOW = 256  # examples that are read at a time, after which there may be a message


def load(data: ConfigDict) -> Dataset:
    """Open, check and, where it fits, decode the set that `config.data` names.

    Raises:
        UserError: as `make_fields`, `open_source`, `take_captions` and `take_states`; images of other channels than 1
            and 3; or unreadable examples, unless data.skip_unreadable.
    """
    check_channels(data.channels)
    take_latents(data)
    source = open_source(data.name, directory=data.dir, split=data.split, label_key=data.label_key)
    source = take_states(data, take_captions(data, source))
    return load_source(source, make_fields(data), data)


def take_latents(data: ConfigDict) -> LatentSource | None:
    """The latent cache that `config.data` names, whose field is added to `data.fields`; None for other sets.

    Raises:
        UserError: as `LatentSource`, or it is of other images than the configuration says.
    """
    if not data.name.startswith(LATENTS):
        return None
    source = open_source(data.name, directory=data.dir, split=data.split, label_key=data.label_key)
    assert isinstance(source, LatentSource), "by its name"
    for field in ("image_size", "channels"):
        there = source.header.images.get(field)
        if data[field] != there:
            raise UserError(f"data.{field}", data[field], f"is not the {there} of the images in {data.name!r}")
    for field in ("crop", "buckets"):
        if data.get(field) is not None:
            what = "is for images, and those of a latent cache were cut out already: None"
            raise UserError(f"data.{field}", data[field], what)
    if data.label_key is not None and not source.class_names:
        raise UserError("data.label_key", data.label_key, f"is not in {data.name!r}, whose images have no labels: None")
    with data.unlocked():
        data.fields.update(ConfigDict(source.fields(data.flip)))
    return source


def load_source(source: Source, fields: Fields, data: ConfigDict) -> Dataset:
    """`load` for a source that is open already; of one that streams, files that were readable before are not read."""
    shapes = {name: shape for field in fields.values() for name, shape in field.shapes().items()}
    size = len(source) * sum(math.prod(one.shape) * one.dtype.itemsize for one in shapes.values())
    streams = size > data.device_cache_mib * 2**20 or any(field.draws for field in fields.values())
    dataset = Dataset(source, fields, np.arange(len(source)), None, data.to_dict())
    if streams and source.checked:
        return dataset
    arrays = None if streams else {name: np.empty((len(source), *one.shape), one.dtype) for name, one in shapes.items()}
    readable = _readable(_read(source, fields, arrays, checks.recall(source, fields)), len(source), data)
    if arrays is not None and len(readable) < len(source):
        arrays = {name: array[readable] for name, array in arrays.items()}
    return Dataset(source, fields, readable, arrays, dataset.settings)


def _read(source: Source, fields: Fields, arrays: Arrays | None, known: Checks) -> dict[int, str]:
    """What is wrong with examples that cannot be read.

    Every example is decoded into `arrays`, or, where there are none, each of which nothing is known. What is found out
    is kept, also while the reading goes on.
    """

    def read(index: int) -> str | None:
        try:
            decoded = field_functions.decode(fields, source[index], 0, index)
        except UserError:
            raise
        except UNREADABLE as e:
            return f"{source.describe(index)}: {e}"
        if arrays is not None:
            for name, value in decoded.items():
                arrays[name][index] = value
        return None

    before = known.passed.copy()
    wanted = np.flatnonzero(~before) if arrays is None else np.arange(len(source))
    problems: dict[int, str] = {}
    begun = reported = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for first in range(0, len(wanted), WINDOW):
            window = wanted[first : first + WINDOW]
            found = dict(zip(window.tolist(), pool.map(read, window.tolist()), strict=True))
            problems |= {index: problem for index, problem in found.items() if problem}
            known.passed[window] = [problem is None for problem in found.values()]
            if time.monotonic() - reported > REPORT_SECONDS:
                reported = time.monotonic()
                _report(first + len(window), len(wanted), reported - begun)
                known.keep()
    if np.any(known.passed != before):
        known.keep()
    return problems


def _report(done: int, total: int, seconds: float) -> None:
    left = datetime.timedelta(seconds=round(seconds * (total - done) / done))
    logging.info("reading the images: %s of %s  %s left", f"{done:,}", f"{total:,}", left)


def _readable(problems: dict[int, str], total: int, data: Any) -> np.ndarray:
    for index in sorted(problems):
        logging.warning("unreadable: %s", problems[index])
    readable = np.setdiff1d(np.arange(total), list(problems))
    if problems and not (data.skip_unreadable and len(readable)):
        raise UserError(
            "data.name",
            data.name,
            f"has {len(problems)} of {total} images that cannot be read (listed above); "
            "mend them, or set data.skip_unreadable to leave them out",
        )
    return readable
