"""Latent caches and the autoencoders that they are of: made, and fitted to a training."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import ml_collections
import numpy as np
from absl import logging

from archirf_jax.data import latent_cache
from archirf_jax.data.fields import LATENTS
from archirf_jax.data.fields.latents import NAME
from archirf_jax.data.images import to_float
from archirf_jax.data.latent_cache import Plan
from archirf_jax.data.latent_source import Header, LatentSource
from archirf_jax.data.pipeline import load, take_latents
from archirf_jax.data.sources import open_source
from archirf_jax.errors import UserError
from archirf_jax.first_stages.autoencoder import RUN
from archirf_jax.launch.runs import Run, open_run
from archirf_jax.tasks.building import make_task

SAME = ("image_size", "channels")


def fit(config: Any, runs: Mapping[str, Run]) -> None:
    """Take the statistics of the latent cache that a configuration trains on, if it does.

    Raises:
        UserError: as `take_latents`, or the cache was made by another autoencoder.
    """
    source = take_latents(config.data)
    if source is None:
        return
    if RUN not in runs:
        what = "holds latents: name the run that made them, --config.frozen.autoencoder=RUN"
        raise UserError("data.name", config.data.name, what)
    if runs[RUN].digest() != source.header.autoencoder:
        what = (
            f"was made by another autoencoder than {str(runs[RUN].directory)!r}; name that one, or make another cache"
        )
        raise UserError("data.name", config.data.name, what)
    with config.unlocked(), config.ignore_type():
        if config.first_stage.get("mean") is None and config.first_stage.name == RUN:
            config.first_stage.mean, config.first_stage.std = tuple(source.header.mean), tuple(source.header.std)


def images_of(data: Any) -> Any:
    """`config.data` of the images of a run, unlocked; of a latent cache that of the images that it was made of.

    What else the run reads of each example, such as captions, is read of these.

    Raises:
        UserError: the cache is not there any more.
    """
    found = data.copy_and_resolve_references().unlock()
    if found.name.startswith(LATENTS):
        source = open_source(found.name, directory=found.dir, split=found.split, label_key=found.label_key)
        assert isinstance(source, LatentSource), "by its name"
        fields = {name: field for name, field in found.fields.to_dict().items() if name != NAME}
        images = source.header.images
        whole = found.to_dict() | images | {"fields": images.get("fields", {}) | fields}
        found = ml_collections.ConfigDict(whole)
    return found


def autoencoder(place: pathlib.Path, field: str) -> Run:
    """The run of an autoencoder.

    Raises:
        UserError: there is none, or it is of another task.
    """
    run = open_run(place, field=field)
    if not hasattr(run.task, "latent"):
        what = f"is the run of the task {run.config.task}, and not of an autoencoder"
        raise UserError(field, str(place), what)
    return run


def with_autoencoder(run: Run, place: pathlib.Path) -> Run:
    """An imported run of a network of latents, which this autoencoder encodes and decodes.

    Raises:
        UserError: there is no such autoencoder, the run has one, or its latents have other channels.
    """
    other = autoencoder(place, "autoencoder")
    model: Any = other.task.model  # type: ignore[attr-defined]
    if run.config.get("first_stage", {}).get("name", "image") != "image":
        raise UserError("autoencoder", str(place), "is not needed: this run has one of its own; leave it out")
    if model.latent_channels != run.config.data.channels:
        what = f"has latents of {model.latent_channels} channels, and the network takes {run.config.data.channels}"
        raise UserError("autoencoder", str(place), what)
    config = run.config.copy_and_resolve_references()
    known = run.config.get("imported", {}).get("latents", {})
    with config.unlocked(), config.ignore_type():
        config.first_stage = ml_collections.ConfigDict({"name": RUN, **known})
        config.frozen = ml_collections.ConfigDict({**config.get("frozen", {}), RUN: str(place)})
        config.data.image_size *= model.factor
        config.data.channels = other.config.data.channels
    runs = {**run.runs, RUN: other}
    return dataclasses.replace(run, config=config, task=make_task(config, runs), runs=runs)


def make_cache(run: Run, data: Any, out: pathlib.Path, flip: bool, batch_size: int) -> Header:
    """Encode every image of a set once, in order; what was encoded before a kill is not encoded again.

    Args:
        run: of the autoencoder.
        data: `config.data` of the images.
        out: folder of the cache.
        flip: encode the mirrored images as well.
        batch_size: images at a time.

    Raises:
        UserError: no such set, images of another kind than the autoencoder's, images that are cut out at random, or
            the folder holds something else.
    """
    if data.get("crop") == "random":
        raise UserError("data.crop", data.crop, "draws anew at each step, and a cache holds an image once: None")
    if data.get("buckets") is not None:
        raise UserError("data.buckets", data.buckets, "gives several shapes, and a cache holds one: None")
    task: Any = run.task
    dataset, params = load(data), jax.device_put(run.params)
    compute = jax.jit(lambda params, images: task.encoded(params, to_float(images)))

    def encode(images: np.ndarray) -> np.ndarray:
        return np.asarray(compute(params, np.ascontiguousarray(images)))

    image = jax.ShapeDtypeStruct((1, data.image_size, data.image_size, data.channels), np.uint8)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
    shape = jax.eval_shape(compute, shapes, image).shape[1:]
    images = {name: value for name, value in data.to_dict().items() if name != "device_cache_mib"}
    # As in caches that are older than these fields.
    images = {name: value for name, value in images.items() if value is not None or name not in ("crop", "buckets")}
    plan = Plan(
        images=images | {"flip": False, "num_classes": None},  # of a training, not of the images
        autoencoder=run.digest(),
        shape=tuple(shape),
        views=2 if flip else 1,
        distribution=shape[-1] == 2 * task.model.latent_channels,
        batch_size=batch_size,
    )
    header = latent_cache.make(out, dataset, encode, plan)
    size = "x".join(map(str, (*shape[:2], len(header.mean))))
    logging.info("%s: latents %s of %d images", out, size, header.examples)
    for name, values in (("mean", header.mean), ("std", header.std)):
        logging.info("%s of each channel: %s", name, " ".join(f"{value:.3f}" for value in values))
    return header
