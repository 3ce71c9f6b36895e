"""A table of features of each class: those of a network, averaged over all images of the class.

`models.conditions` reads it, as the context of networks that are conditioned on labels through pretrained features.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tqdm
from absl import logging

from archirf_jax.data import passes
from archirf_jax.data.dataset import Dataset
from archirf_jax.data.fields import Arrays
from archirf_jax.data.images import to_float
from archirf_jax.errors import UserError
from archirf_jax.files import atomic_write

# Images (B, H, W, C) float32 in [-1, 1] -> (B, tokens, dim) or (B, h, w, dim).
Features = Callable[[np.ndarray], Any]


def parts(dataset: Dataset, batch_size: int) -> Iterator[tuple[Arrays, int]]:
    """(a batch, how many of its examples count): every readable one once, in the order of the set.

    All batches have one size: what comes after the counted examples only fills up. "image" is float32 in [-1, 1], all
    else as it is decoded.
    """
    size = min(batch_size, len(dataset))
    for batch in passes.batches(dataset, np.arange(len(dataset)), size):
        filled = {name: np.resize(array, (size, *array.shape[1:])) for name, array in batch.items()}
        yield filled | {"image": to_float(filled["image"])}, len(batch["image"])


def class_means(dataset: Dataset, batches: Iterator[tuple[Arrays, int]], features: Features) -> np.ndarray:
    """The table (classes, tokens, dim) float32 of a set, summed in float64 in the order of its images.

    Args:
        dataset: has the classes and the number of images.
        batches: its images, from `parts`.
        features: of images; the numbers of a map (h, w) are tokens row by row.

    Raises:
        UserError: a set without labels, features of another shape or that are not finite, or a class without images.
    """
    names, total = dataset.class_names, len(dataset)
    if not names:
        raise UserError("data.label_key", message="the set has no labels, and a table of classes needs them")
    sums: np.ndarray | None = None
    counts, done = np.zeros(len(names), np.int64), 0
    with tqdm.tqdm(total=total, unit=" images", disable=None) as bar:
        for batch, count in batches:
            found, labels = _checked(features(batch["image"]), len(batch["image"]))[:count], batch["label"][:count]
            if sums is None:
                sums = np.zeros((len(names), *found.shape[1:]))
            if found.shape[1:] != sums.shape[1:]:
                given = f"gave {sums.shape[1:]} for one image and {found.shape[1:]} for another"
                raise UserError("features", message=given)
            _require_finite(found, dataset, done)
            np.add.at(sums, labels, found)
            np.add.at(counts, labels, 1)
            done += count
            bar.update(count)
            logging.log_every_n_seconds(logging.INFO, "features of %d of %d images", 10, done, total)
    absent = ", ".join(name for name, count in zip(names, counts, strict=True) if not count)
    if absent or sums is None:
        raise UserError("data.split", message=f"has no images of class {absent}; every class needs some")
    return (sums / counts[:, None, None]).astype(np.float32)


def write(table: np.ndarray, path: pathlib.Path) -> None:
    """Save a table, whole or not at all."""
    atomic_write(path, lambda file: np.savez(file, table=table))


def _checked(found: Any, batch: int) -> np.ndarray:
    """(B, tokens, dim) float64 of the features that a user's function gave for B images."""
    array = np.asarray(found, np.float64)
    if array.ndim not in (3, 4) or len(array) != batch or not array.size:
        raise UserError(
            "features",
            message=f"gave an array of shape {array.shape} for {batch} images; it must be "
            f"({batch}, tokens, dim) or ({batch}, h, w, dim)",
        )
    return array.reshape(batch, -1, array.shape[-1])


def _require_finite(found: np.ndarray, dataset: Dataset, first: int) -> None:
    wrong = np.flatnonzero(~np.isfinite(found).all(axis=(1, 2)))
    if len(wrong):
        name = dataset.source.describe(int(dataset.readable[first + wrong[0]]))
        raise UserError("features", message=f"gave nan or infinity for {name}")
