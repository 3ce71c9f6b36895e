"""Making a latent cache: a set is encoded once, in order, and what was done before a kill is not done again."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
from absl import logging

from archirf_jax import untrusted
from archirf_jax.data import passes
from archirf_jax.data.dataset import Dataset
from archirf_jax.data.latent_source import HEADER, LABELS, MOMENTS, Header, LatentSource
from archirf_jax.errors import UserError
from archirf_jax.files import atomic_write

PROGRESS = "progress.json"  # what is being made and how far it is; gone when the cache is whole
CHUNK = 4096  # examples read at a time for the statistics
LARGEST = 65_504.0  # float16
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
    """Make the cache in a folder, or go on with it.

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
    if (folder / HEADER).exists() and not (folder / PROGRESS).exists():
        return _ready(folder, kept)
    done = _begun(folder, described)
    moments = _opened(folder / MOMENTS, (len(dataset), plan.views, *plan.shape), np.float16, new=done == 0)
    labels = _opened(folder / LABELS, (len(dataset),), np.int32, new=done == 0) if dataset.class_names else None
    for arrays in passes.batches(dataset, np.arange(done, len(dataset)), plan.batch_size):
        images = arrays["image"]
        rows = slice(done, done + len(images))
        filled = images[np.arange(plan.batch_size) % len(images)]  # the last batch: one program for all
        for view in range(plan.views):
            found = encode(filled[:, :, ::-1] if view else filled)[: len(images)]
            if not np.isfinite(found).all():
                raise UserError("autoencoder", message=f"gives nan or infinity for {dataset.source.describe(done)}")
            moments[rows, view] = np.clip(found, -LARGEST, LARGEST)
        if labels is not None:
            labels[rows] = arrays["label"]
        done = rows.stop
        for array in (moments, labels):
            if array is not None:
                array.flush()
        atomic_write(folder / PROGRESS, json.dumps({"plan": described, "done": done}))
        logging.log_every_n_seconds(logging.INFO, "encoded %d of %d images", 10, done, len(dataset))
    mean, std = statistics(moments, plan.distribution)
    whole: dict[str, Any] = dict(
        class_names=list(dataset.class_names), images_digest=dataset.digest, mean=mean, std=std
    )
    header = Header(**kept, examples=len(dataset), **whole)
    atomic_write(folder / HEADER, json.dumps(dataclasses.asdict(header), indent=2) + "\n")
    (folder / PROGRESS).unlink(missing_ok=True)
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


def _ready(folder: pathlib.Path, kept: dict[str, Any]) -> Header:
    """The header of a whole cache.

    Raises:
        UserError: it is another one than that of the plan.
    """
    header = LatentSource(folder).header
    if named := [name for name, value in kept.items() if getattr(header, name) != value]:
        raise UserError("out", str(folder), f"holds another cache ({', '.join(named)} differ); give a new folder")
    return header


def _begun(folder: pathlib.Path, described: dict[str, Any]) -> int:
    """How many examples of this plan are encoded already.

    Raises:
        UserError: the folder holds another cache, or other files, or cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        found = {path.name for path in folder.iterdir()}
    except OSError as e:
        raise UserError("out", str(folder), f"cannot be a folder for latents: {e.strerror}") from e
    if not found:
        atomic_write(folder / PROGRESS, json.dumps({"plan": described, "done": 0}))
        return 0
    if PROGRESS not in found:
        raise UserError("out", str(folder), "is not empty, and not the beginning of a latent cache; give a new folder")
    try:
        state = untrusted.read_json(folder / PROGRESS)
        plan, done = state["plan"], state["done"]
    except (untrusted.Unreadable, TypeError, LookupError) as e:
        raise UserError("out", str(folder / PROGRESS), f"is damaged: {e}; delete the folder") from e
    if plan != described:
        named = [name for name in described if plan.get(name) != described[name]] if isinstance(plan, dict) else []
        what = f"holds the beginning of another cache ({', '.join(named)} differ); give the same flags or a new folder"
        raise UserError("out", str(folder), what)
    return int(done)


def _opened(path: pathlib.Path, shape: tuple[int, ...], dtype: Any, new: bool) -> Any:
    try:
        if new:
            return np.lib.format.open_memmap(path, "w+", dtype, shape)
        found = np.lib.format.open_memmap(path, "r+")
    except (OSError, ValueError) as e:
        raise UserError("out", str(path), f"cannot be written or is damaged: {e}") from e
    if found.shape != shape or found.dtype != dtype:
        raise UserError("out", str(path), "is not what was begun there; delete the folder")
    return found
