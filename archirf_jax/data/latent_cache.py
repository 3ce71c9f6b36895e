"""Making a latent cache: a set is encoded once, in order, and what was done before a kill is not done again."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from archirf_jax.data import kept_texts, passes, resumable
from archirf_jax.data.dataset import Dataset
from archirf_jax.data.latent_source import HEADER, LABELS, MOMENTS, TEXTS, Header, LatentSource
from archirf_jax.errors import UserError

CHUNK = 4096  # examples read at a time for the statistics
Encode = Callable[[np.ndarray], np.ndarray]  # images (B, H, W, C) uint8 -> latents (B, h, w, D) float32


@dataclasses.dataclass(frozen=True)
class Plan:
    """What decides the bytes of a cache: fields as of `Header`, and the images encoded at a time."""

    images: dict[str, Any]
    autoencoder: str
    shape: tuple[int, ...]
    views: int
    distribution: bool
    batch_size: int


def make(folder: pathlib.Path, dataset: Dataset, encode: Encode, plan: Plan) -> Header:
    """Make the cache in a folder, or go on with it; a whole one without the texts of the set is given these.

    Args:
        folder: made, with its parents.
        dataset: the images.
        encode: what makes latents of them; called with `plan.batch_size` images each time.
        plan: what is to be made.

    Raises:
        UserError: the folder holds something else, or a latent is not finite.
    """
    described = json.loads(json.dumps(dataclasses.asdict(plan)))
    kept = {name: described[name] for name in described if name != "batch_size"}
    if resumable.is_whole(folder, HEADER):
        return _ready(folder, kept, dataset)
    shapes: dict[str, Any] = {MOMENTS: ((len(dataset), plan.views, *plan.shape), np.float16)}
    if dataset.class_names:
        shapes[LABELS] = (len(dataset),), np.int32
    arrays = resumable.fill(folder, described, shapes, lambda done: _parts(dataset, encode, plan, done))
    mean, std = statistics(arrays[MOMENTS], plan.distribution)
    whole: dict[str, Any] = dict(
        class_names=list(dataset.class_names), images_digest=dataset.digest, mean=mean, std=std
    )
    header = Header(**kept, examples=len(dataset), **whole, texts=_keep_texts(folder, dataset))
    resumable.finish(folder, HEADER, dataclasses.asdict(header))
    return header


def statistics(moments: np.ndarray, distribution: bool) -> tuple[list[float], list[float]]:
    """(means, standard deviations) of latents (N, views, h, w, D) by channel, in float64.

    Of distributions, whose halves are means and logarithms of variances, those of what is drawn from them.
    """
    channels = moments.shape[-1] // (2 if distribution else 1)
    total, square, count = np.zeros(channels), np.zeros(channels), 0
    for first in range(0, len(moments), CHUNK):
        part = moments[first : first + CHUNK].reshape(-1, moments.shape[-1]).astype(np.float64)
        center, variance = part[:, :channels], np.exp(part[:, channels:]) if distribution else 0.0
        total += center.sum(axis=0)
        square += (center**2 + variance).sum(axis=0)
        count += len(part)
    mean = total / count
    return mean.tolist(), np.sqrt(np.maximum(square / count - mean**2, 0)).tolist()


def _parts(dataset: Dataset, encode: Encode, plan: Plan, done: int) -> Iterator[dict[str, np.ndarray]]:
    """Latents and labels of the images after the first `done`."""
    for arrays in passes.batches(dataset, np.arange(done, len(dataset)), plan.batch_size):
        images = arrays["image"]
        filled = images[np.arange(plan.batch_size) % len(images)]  # the last batch: one program for all
        views = [encode(filled[:, :, ::-1] if view else filled)[: len(images)] for view in range(plan.views)]
        moments = np.stack(views, axis=1)
        if not np.isfinite(moments).all():
            raise UserError("autoencoder", message=f"gives nan or infinity for {dataset.source.describe(done)}")
        done += len(images)
        yield {MOMENTS: resumable.half(moments), LABELS: arrays.get("label", np.zeros(len(images), np.int32))}


def _keep_texts(folder: pathlib.Path, dataset: Dataset) -> list[str]:
    """Write the texts that the set has, and return the names of their features."""
    names, source = list(dataset.source.texts), dataset.source
    if names:
        rows = ({name: source.captions(int(index), name) for name in names} for index in dataset.readable)
        kept_texts.write(folder / TEXTS, rows)
    return names


def _ready(folder: pathlib.Path, kept: dict[str, Any], dataset: Dataset) -> Header:
    """The header of a whole cache, with the texts of the set.

    Raises:
        UserError: it is another one than that of the plan.
    """
    header = LatentSource(folder).header
    resumable.check_same(folder, header, kept)
    if header.texts or not dataset.source.texts:
        return header
    resumable.check_same(folder, header, {"images_digest": dataset.digest})
    header = dataclasses.replace(header, texts=_keep_texts(folder, dataset))
    resumable.finish(folder, HEADER, dataclasses.asdict(header))
    return header
