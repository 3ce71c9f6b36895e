"""How good a run is: its loss and likelihood on given images, and its pictures beside them."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from archirf_jax.data import passes
from archirf_jax.data.pipeline import Dataset, finish
from archirf_jax.errors import UserError
from archirf_jax.evaluation import distances, likelihood, neighbours, reference
from archirf_jax.evaluation.features import Extractor
from archirf_jax.evaluation.reference import Sample
from archirf_jax.evaluation.statistics import moments
from archirf_jax.processes.ddpm import DDPM
from archirf_jax.samplers.choice import Choice
from archirf_jax.tasks.classifier import Classifier
from archirf_jax.tasks.diffusion import Diffusion, Inputs
from archirf_jax.tasks.edits import Sheet
from archirf_jax.training.state import TrainState
from archirf_jax.training.update import INNER, LARGEST, by_time

BYTE = 256  # grey levels


class Figure(NamedTuple):
    """A mean and its standard error; nan = it has none."""

    value: float
    error: float = math.nan


Figures = dict[str, Figure]


class Pictures(NamedTuple):
    """Real images, in an order that has no meaning, so that the first ones stand for all.

    Attributes:
        dataset: loaded. size: pixels a side. channels: 1 or 3. batch_size: images looked at at a time.
        place: where a batch lies; None = on one device.
    """

    dataset: Dataset
    size: int
    channels: int
    batch_size: int
    place: Any = None

    @property
    def order(self) -> np.ndarray:
        """Every example once."""
        return np.random.default_rng(0).permutation(len(self.dataset.readable))

    def batches(self, count: int | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """uint8 images (b, H, W, C) and labels (b,): the first `count`, from the start again where there are fewer."""
        order = self.order if count is None else np.resize(self.order, count)
        return passes.batches(self.dataset, order, self.batch_size, self.size, self.channels)

    def labels(self, count: int) -> np.ndarray:
        """(count,) int32, those of `batches`; no image is decoded."""
        order, known = np.resize(self.order, count), self.dataset.labels
        if known is not None:
            return np.asarray(known[order], np.int32)
        numbers = self.dataset.readable
        return np.asarray([self.dataset.source[int(numbers[index])][1] for index in order], np.int32)

    def full_batches(self, count: int, what: str) -> Iterator[tuple[int, jax.Array, jax.Array]]:
        """(how many of them count, images, labels) in batches of one size; `what` is said of the progress."""
        done = 0
        for images, labels in self.batches(count):
            filled = np.arange(self.batch_size) % len(images)
            yield len(images), *jax.device_put((images[filled], labels[filled]), self.place)
            done += len(images)
            logging.log_every_n_seconds(logging.INFO, "%s: %d of %d images", 10, what, done, count)


def mean(values: np.ndarray) -> Figure:
    """The mean of (N,) values."""
    error = np.std(values, ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return Figure(float(np.mean(values)), float(error))


def loss(task: Diffusion | Classifier, params: Any, pictures: Pictures, count: int, key: jax.Array) -> Figures:
    """The loss that training lowers, without dropout, and what goes with it; one time and noise an image.

    The same key draws the same for any parameters, so that losses of two runs differ by less than their errors say.
    """
    state = TrainState(jnp.int32(0), params={}, ema={}, opt=(), memory=task.process.init_memory())

    @jax.jit
    def compute(params: Any, images: jax.Array, labels: jax.Array, key: jax.Array) -> Any:
        drawn = task.draw(state, finish(images, labels, False, key), key)
        each, aux = task.losses(None)(params, drawn, 0)
        return each, {name: jnp.asarray(value, jnp.float32) for name, value in aux.items()}

    found = []
    for number, (n, images, labels) in enumerate(pictures.full_batches(count, "loss")):
        told = compute(params, images, labels, jax.random.fold_in(key, number))
        found.append(jax.tree.map(lambda x, n=n: np.asarray(x)[:n], told))
    each, aux = jax.tree.map(lambda *parts: np.concatenate(parts), *found)
    quarters = {name: np.asarray(pair) for name, pair in by_time(aux, each).items()}
    others = {name: mean(value) for name, value in aux.items() if name not in (*INNER, *LARGEST)}
    by_quarter = {name: Figure(float(total / weight)) for name, (total, weight) in quarters.items() if weight}
    return {"loss": mean(each)} | others | by_quarter


def bits_per_dim(
    task: Diffusion, params: Any, pictures: Pictures, count: int, key: jax.Array, levels: int, steps: int, probes: int
) -> Figures:
    """Bits per dimension of images with `levels` grey levels, told their labels.

    Along the probability-flow ODE; by DDPM's variational bound where there are 256 levels, whose half is less noise
    than a DDPM was ever told of.
    """
    process = task.process
    choice, bound = Choice(guidance_scale=1.0), isinstance(process, DDPM) and levels == BYTE

    @jax.jit
    def compute(params: Any, images: jax.Array, labels: jax.Array, keys: jax.Array) -> Any:
        x0, y = finish(images, labels, False, keys[0])
        if isinstance(process, DDPM) and bound:
            return process.bits_per_dim(keys[0], task.model_fn(params), x0, y)[0], jnp.zeros(len(x0))
        denoise = choice.make_denoiser(process, task.model_fn(params), task.null)
        found = likelihood.of_ode(keys, denoise, x0, y, levels=levels, steps=steps, probes=probes)
        return found.value, found.step_error

    values, step_errors, done = [], [], 0
    for n, images, labels in pictures.full_batches(count, "likelihood"):
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(done + jnp.arange(len(images)))
        value, step_error = compute(params, images, labels, keys)
        values.append(np.asarray(value)[:n])
        step_errors.append(np.asarray(step_error)[:n])
        done += n
    name = "bits_per_dim_bound" if bound else "bits_per_dim"
    steps_alone = {} if bound else {"bits_per_dim_step_error": Figure(float(np.mean(np.concatenate(step_errors))))}
    return {name: mean(np.concatenate(values))} | steps_alone


def look(pictures: Pictures, extractor: Extractor, count: int, folder: pathlib.Path) -> tuple[Sample, str]:
    """(what is seen in the real images, with the features of `count` of them; their digest).

    It is kept in `folder` for the next time.
    """
    digest = reference.digest(images for images, _ in pictures.batches())

    def make() -> Sample:
        images = (images for images, _ in pictures.batches())
        return reference.gather(images, extractor, count, pictures.batch_size, pictures.place)

    real = reference.recall(folder, digest, extractor, count, make)
    width = real.features.shape[1]
    if len(real.features) < neighbours.FEWEST:
        raise UserError(f"--data: {len(real.features)} images are too few; at least {neighbours.FEWEST} are needed")
    logging.info("%d real images, %d features by %s", real.moments.images, width, extractor.name)
    if min(count, real.moments.images) <= width:
        logging.warning("--images: no more than features, so that the Frechet distance tells mostly of their number")
    return real, digest


def labels(pictures: Pictures, inputs: Inputs, count: int) -> np.ndarray:
    """(count,) labels as often as the real images have them; where labels are rows of conditions, each in turn."""
    if inputs.conditions is not None:
        return np.arange(count, dtype=np.int32) % len(jax.tree.leaves(inputs.conditions)[0])
    return pictures.labels(count)


def draw(sheet: Sheet, labels: np.ndarray, extractor: Extractor) -> Sample:
    """What is seen in one picture a label, the i-th drawn with the i-th key."""
    keys = jax.vmap(lambda i: jax.random.fold_in(sheet.key, i))(jnp.arange(len(labels)))

    def batches() -> Iterator[np.ndarray]:
        done = 0
        for images in sheet.batches(jnp.asarray(labels), keys):
            yield images
            done += len(images)
            logging.log_every_n_seconds(logging.INFO, "drawn: %d of %d images", 10, done, len(labels))

    return reference.gather(batches(), extractor, len(labels), sheet.batch_size, sheet.place)


def of_samples(sheets: list[Sheet], labels: np.ndarray, real: Sample, extractor: Extractor) -> Figures:
    """Figures of each sheet's samples beside the real images: their mean and their standard deviation."""
    rows = []
    for sheet in sheets:
        drawn = draw(sheet, labels, extractor)
        rows.append(compare(real, drawn) | score(drawn, labels, extractor))
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    spread = {name: float(np.std(values, ddof=1)) if len(rows) > 1 else math.nan for name, values in columns.items()}
    return {name: Figure(float(np.mean(values)), spread[name]) for name, values in columns.items()}


def compare(real: Sample, drawn: Sample) -> dict[str, float]:
    """How far the drawn images are from the real ones, and what their neighbourhoods tell; at least six of each."""
    return {
        "frechet": distances.frechet(drawn.moments, real.moments),
        "kernel": distances.kernel(drawn.features, real.features),
        **neighbours.compare(real.features, drawn.features),
    }


def score(drawn: Sample, labels: np.ndarray, extractor: Extractor) -> dict[str, float]:
    """What the extractor's classes tell: the share of images that are what was asked for, or the inception score."""
    if drawn.log_p is None:
        return {}
    if extractor.labelled:
        return {"accuracy": float(np.mean(np.argmax(drawn.log_p, axis=1) == labels))}
    return {"inception_score": distances.inception_score(drawn.log_p)}


def halves(real: Sample) -> dict[str, float]:
    """`compare` of one half of the real images with the other: what no model can be asked to surpass."""
    middle = len(real.features) // 2
    if middle < neighbours.FEWEST:
        return {}
    first, second = (Sample(moments(part), part) for part in (real.features[:middle], real.features[middle:]))
    return compare(second, first)
