"""Features of the real images, kept between evaluations under a name that depends on what they are features of."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from absl import logging

from archirf_jax import untrusted
from archirf_jax.errors import UserError
from archirf_jax.evaluation import distances, neighbours
from archirf_jax.evaluation.features import Extractor
from archirf_jax.evaluation.statistics import Moments, merged, moments
from archirf_jax.files import atomic_write

VERSION = "1"  # of what is kept
WIDEST = 8192  # features; a covariance takes half a GiB, and several are held at a time


@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
    """Statistics and features of a set of images.

    Attributes:
        moments: of the features of all.
        features: (M, D) float32, of the first ones.
        log_p: (M, K) of the same, None where there are no classes.
    """

    moments: Moments
    features: np.ndarray
    log_p: np.ndarray | None = None

    @functools.cached_property
    def within(self) -> float:
        """`distances.within` of the features."""
        return distances.within(self.features)

    @functools.cached_property
    def radii(self) -> np.ndarray:
        """`neighbours.radii` of the features."""
        return neighbours.radii(self.features)

    def part(self, rows: slice) -> Sample:
        """The sample of some of the images."""
        return Sample(moments(self.features[rows]), self.features[rows])


def digest(batches: Iterable[np.ndarray]) -> str:
    """A digest of all images (B, H, W, C) uint8, their sizes and their order; batching does not change it."""
    hashed = hashlib.sha256()
    for images in batches:
        for image in images:
            hashed.update(repr(image.shape).encode())
            hashed.update(np.ascontiguousarray(image).tobytes())
    return hashed.hexdigest()


def gather(batches: Iterable[np.ndarray], extractor: Extractor, keep: int, size: int, place: Any = None) -> Sample:
    """The features of all images.

    Args:
        batches: uint8 images (b, H, W, C), b at most `size`.
        extractor: gives their features.
        keep: how many of the first features to keep.
        size: images at a time; smaller batches are filled up, so that one program serves all.
        place: where a batch lies; None = on one device.

    Raises:
        UserError: features that are not finite numbers, too many, or not as many for each image.
    """
    total: Moments | None = None
    features: list[np.ndarray] = []
    log_p: list[np.ndarray] = []
    kept = 0
    for images in batches:
        count = len(images)
        filled = images if count == size else images[np.arange(size) % count]
        seen = jax.tree.map(
            lambda x, count=count: np.asarray(x)[:count], extractor.extract(jax.device_put(filled, place))
        )
        _check(seen.features, features, extractor)
        part = moments(seen.features)
        total = part if total is None else merged(total, part)
        take = min(count, keep - kept)
        features.append(seen.features[:take])
        log_p += [] if seen.log_p is None else [seen.log_p[:take]]
        kept += take
    if total is None:
        raise ValueError("there are no images")
    return Sample(total, np.concatenate(features), np.concatenate(log_p) if log_p else None)


def _check(found: np.ndarray, before: list[np.ndarray], extractor: Extractor) -> None:
    width = found.shape[1]
    if width > WIDEST:
        raise UserError(
            "features", message=f"{extractor.name} gave {width} numbers for an image; at most {WIDEST} are compared"
        )
    if before and before[0].shape[1] != width:
        raise UserError(
            "features",
            message=f"{extractor.name} gave {before[0].shape[1]} numbers for one image and {width} for another",
        )
    if not np.all(np.isfinite(found)):
        raise UserError("features", message=f"{extractor.name} gave nan or infinity for an image")


def recall(folder: pathlib.Path, data: str, extractor: Extractor, keep: int, make: Callable[[], Sample]) -> Sample:
    """The sample of the images whose digest is `data`: from `folder`, or made and kept there.

    A folder that cannot be written costs time alone, and so does an extractor whose identity is unknown.
    """
    if not extractor.identity:
        return make()
    name = hashlib.sha256("\n".join((VERSION, data, extractor.identity, str(keep))).encode()).hexdigest()
    path = folder / f"{name[:32]}.npz"
    if (found := _read(path)) is not None:
        return found
    sample = make()
    try:
        _write(sample, path)
    except OSError as e:
        logging.warning("features of the real images are not kept in %s: %s", folder, e.strerror)
    return sample


def _read(path: pathlib.Path) -> Sample | None:
    try:
        found = untrusted.read_arrays(path)
        return Sample(Moments(int(found["images"]), found["mean"], found["scatter"]), found["features"])
    except (untrusted.Unreadable, KeyError, TypeError, ValueError):
        return None


def _write(sample: Sample, path: pathlib.Path) -> None:
    """Write the file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = sample.moments._asdict() | {"features": sample.features}
    part = path.with_name(f"{path.name}.{os.getpid()}.part")  # several evaluations may come to it at once
    atomic_write(path, lambda file: np.savez(file, **arrays), part)
