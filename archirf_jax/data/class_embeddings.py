"""A table of what a network says of each class: its features, averaged over all images of the class.

`models.conditions` reads it, as the context of networks that are told labels through pretrained features.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import tqdm
from absl import logging

from archirf_jax.data import passes
from archirf_jax.data.pipeline import Dataset
from archirf_jax.errors import UserError

# Images (B, H, W, C) float32 in [-1, 1] -> (B, tokens, dim) or (B, h, w, dim).
Features = Callable[[np.ndarray], Any]


class Part(NamedTuple):
    """images (B, H, W, C) float32 in [-1, 1], labels (n,), n <= B: what comes after the n-th image only fills up."""

    images: np.ndarray
    labels: np.ndarray


def parts(dataset: Dataset, image_size: int, channels: int, batch_size: int) -> Iterator[Part]:
    """Every readable image once, in the order of the set, in batches of one size."""
    total = len(dataset.readable)
    size = min(batch_size, total)
    for images, labels in passes.batches(dataset, np.arange(total), size, image_size, channels):
        filled = np.resize(images, (size, *images.shape[1:]))
        yield Part((filled.astype(np.float32) - 127.5) / 127.5, labels)


def class_means(dataset: Dataset, batches: Iterator[Part], features: Features) -> np.ndarray:
    """The table (classes, tokens, dim) float32 of a set, summed in float64 in the order of its images.

    Args:
        dataset: says classes and how many images there are.
        batches: its images, from `parts`.
        features: of images; the numbers of a map (h, w) are tokens row by row.

    Raises:
        UserError: features of another shape or that are no finite numbers, or a class without images.
    """
    names, total = dataset.source.class_names, len(dataset.readable)
    sums: np.ndarray | None = None
    counts, done = np.zeros(len(names), np.int64), 0
    with tqdm.tqdm(total=total, unit=" images", disable=None) as bar:
        for images, labels in batches:
            found = _checked(features(images), len(images))[: len(labels)]
            if sums is None:
                sums = np.zeros((len(names), *found.shape[1:]))
            if found.shape[1:] != sums.shape[1:]:
                raise UserError(f"--features: gave {sums.shape[1:]} for one image and {found.shape[1:]} for another")
            _require_finite(found, dataset, done)
            np.add.at(sums, labels, found)
            np.add.at(counts, labels, 1)
            done += len(labels)
            bar.update(len(labels))
            logging.log_every_n_seconds(logging.INFO, "features of %d of %d images", 10, done, total)
    absent = ", ".join(name for name, count in zip(names, counts, strict=True) if not count)
    if absent or sums is None:
        raise UserError(f"--name: the split has no images of class {absent}; every class needs some")
    return (sums / counts[:, None, None]).astype(np.float32)


def write(table: np.ndarray, path: pathlib.Path) -> None:
    """Save a table, whole or not at all."""
    part = path.with_name(f"{path.name}.part")
    with part.open("wb") as file:
        np.savez(file, table=table)
    part.replace(path)


def _checked(found: Any, batch: int) -> np.ndarray:
    """(B, tokens, dim) float64 of what somebody's features gave for B images."""
    array = np.asarray(found, np.float64)
    if array.ndim not in (3, 4) or len(array) != batch or not array.size:
        raise UserError(
            f"--features: gave an array of shape {array.shape} for {batch} images; it must be "
            f"({batch}, tokens, dim) or ({batch}, h, w, dim)"
        )
    return array.reshape(batch, -1, array.shape[-1])


def _require_finite(found: np.ndarray, dataset: Dataset, first: int) -> None:
    wrong = np.flatnonzero(~np.isfinite(found).all(axis=(1, 2)))
    if len(wrong):
        name = dataset.source.describe(int(dataset.readable[first + wrong[0]]))
        raise UserError(f"--features: gave nan or infinity for {name}")
