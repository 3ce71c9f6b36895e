"""Data sets in one call, for notebooks and scripts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from archirf_jax.data.captions import take_captions
from archirf_jax.data.dataset import Dataset
from archirf_jax.data.fields import make_fields
from archirf_jax.data.pipeline import load_source
from archirf_jax.data.preparation import prepare
from archirf_jax.data.sources import ARRAYS, FOLDER, ArraySource, Source, open_source
from archirf_jax.data.text_source import take_states
from archirf_jax.errors import UserError

SETTINGS: dict[str, Any] = {  # of `config.data` where nothing else is given
    "dir": "data",
    "split": "train",
    "label_key": "label",
    "num_classes": None,
    "value_range": None,
    "crop": None,
    "buckets": None,
    "flip": False,
    "device_cache_mib": 2048,
    "skip_unreadable": False,
    "fields": {},
}


def load(
    name: str,
    dir: str = "data",
    split: str = "train",
    image_size: int | None = None,
    channels: int | None = None,
    flip: bool = False,
    label_key: str | None = "label",
    skip_unreadable: bool = False,
    value_range: tuple[float, float] | None = None,
    captions: bool = False,
    tokenizer: str | None = None,
    crop: str | None = None,
    buckets: Sequence[float] | None = None,
) -> Dataset:
    """A TFDS set, prepared first if it is not.

    Args:
        name: such as "digits", "cifar10" or "imagenet_resized/64x64".
        dir: folder of prepared sets.
        split: or part of one, such as "train[:80%]".
        image_size: pixels a side; None = the set's own.
        channels: 1 (grey) or 3 (RGB); None = the set's own.
        flip: mirror images at random.
        label_key: feature that holds the label; None = no labels.
        skip_unreadable: leave out images that cannot be read.
        value_range: levels (lo, hi) of the files that become -1 and 1, such as (0, 4095) of 12 bits; those outside are
            clipped. None = what the format says.
        captions: batches hold the tokens of the texts "caption": "ids" and "mask".
        tokenizer: tokenizer.json, or the run of a text encoder; None = that of the set's own words.
        crop: None = the largest centred square. "center", "random" = a square of the image that is resized to cover it,
            with its "size"; see `fields.image.Image`.
        buckets: (what sides are multiples of, largest aspect ratio) of batches of several shapes; None = squares alone.

    Raises:
        UserError: as `prepare` and `pipeline.load`; images of different sizes where no size is given.
    """
    if not name.startswith(FOLDER):
        prepare(name, dir)
    source = open_source(name, directory=dir, split=split, label_key=label_key)
    height, width, depth = getattr(source, "image_shape", (None, None, None))
    side = min(height, width) if height and width else None
    given: dict[str, Any] = {
        "image_size": _own("data.image_size", image_size, side),
        "channels": _own("data.channels", channels, 1 if depth == 1 else 3 if depth else None),
    }
    given |= dict(dir=dir, split=split, label_key=label_key, flip=flip, skip_unreadable=skip_unreadable)
    given |= {"value_range": value_range, "crop": crop, "buckets": buckets, "fields": _fields(captions, tokenizer)}
    return _load(source, name=name, **given)


def folder(
    path: str,
    size: int = 64,
    channels: int = 3,
    flip: bool = False,
    value_range: tuple[float, float] | None = None,
    captions: bool = False,
    tokenizer: str | None = None,
    crop: str | None = None,
    buckets: Sequence[float] | None = None,
) -> Dataset:
    """Images in a folder, one subfolder a class, cut to squares of `size` pixels; other arguments as of `load`.

    Captions are the lines of NAME.txt beside each image, or in metadata.jsonl or metadata.csv (file_name, text).

    Raises:
        UserError: no such folder, or images that cannot be read or have no caption.
    """
    given: dict[str, Any] = dict(image_size=size, channels=channels, flip=flip, value_range=value_range, crop=crop)
    name = f"{FOLDER}{path}"
    source = open_source(name, directory="", split="train", label_key="label")
    return _load(source, name=name, buckets=buckets, fields=_fields(captions, tokenizer), **given)


def from_arrays(
    images: np.ndarray,
    labels: np.ndarray | None = None,
    class_names: Sequence[str] | None = None,
    flip: bool = False,
    captions: Sequence[str | Sequence[str]] | None = None,
    tokenizer: str | None = None,
) -> Dataset:
    """Images in memory.

    Args:
        images: (N, S, S, 1 or 3) uint8.
        labels: (N,) integers from 0; None = no labels.
        class_names: name of each label; None = their numbers.
        flip: mirror images at random.
        captions: (N,) texts, or several of each image; None = no captions.
        tokenizer: as of `load`.

    Raises:
        UserError: arrays of another shape or type, labels without a name, or images without a caption.
    """
    images = np.asarray(images)
    if images.ndim != 4 or images.dtype != np.uint8 or not len(images) or images.shape[1] != images.shape[2]:
        raise UserError(
            "images", message=f"are {images.dtype} of the shape {images.shape}; they must be uint8 (N, S, S, C)"
        )
    numbers, names = _labels(labels, class_names, len(images))
    texts = None if captions is None else _captions(captions, len(images))
    given: dict[str, Any] = {"image_size": images.shape[1], "channels": images.shape[3], "flip": flip}
    given |= {"label_key": None if numbers is None else "label", "fields": _fields(texts is not None, tokenizer)}
    return _load(ArraySource(images, numbers, names, texts), name=ARRAYS, **given)


def _load(source: Source, **given: Any) -> Dataset:
    data = ConfigDict(SETTINGS | given)
    source = take_states(data, take_captions(data, source))
    return load_source(source, make_fields(data), data)


def _fields(captions: bool, tokenizer: str | None) -> dict[str, Any]:
    """`config.data.fields` of a set with or without captions."""
    if tokenizer is not None and not captions:
        raise UserError("tokenizer", tokenizer, "belongs to captions; ask for these too")
    return {"caption": {"name": "caption", "tokenizer": tokenizer}} if captions else {}


def _own(field: str, given: int | None, own: int | None) -> int:
    if given is None and own is None:
        raise UserError(field, message="the images of this set differ; say which number all of them get")
    return own if given is None else given  # type: ignore[return-value]


def _captions(captions: Sequence[str | Sequence[str]], count: int) -> list[list[str]]:
    if isinstance(captions, str) or len(captions) != count:
        raise UserError("captions", message=f"must be {count} texts, one an image, or lists of texts")
    rows = [[one] if isinstance(one, str) else one for one in captions]
    if not all(isinstance(row, Sequence) and all(isinstance(text, str) for text in row) for row in rows):
        raise UserError("captions", message="must be texts, or lists of texts")
    return [list(row) for row in rows]


def _labels(
    labels: np.ndarray | None, class_names: Sequence[str] | None, count: int
) -> tuple[np.ndarray | None, list[str]]:
    if labels is None:
        if class_names is not None:
            raise UserError("class_names", message="belong to labels, and there are none; give labels too")
        return None, []
    labels = np.asarray(labels)
    if labels.shape != (count,) or not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
        raise UserError(
            "labels", message=f"are {labels.dtype} of the shape {labels.shape}; they must be ({count},) integers from 0"
        )
    names = [str(i) for i in range(int(labels.max()) + 1)] if class_names is None else list(class_names)
    if labels.max() >= len(names):
        raise UserError("labels", int(labels.max()), f"does not have a name; there are {len(names)} names")
    return labels, names
