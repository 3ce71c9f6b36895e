"""How good a run is: its loss and likelihood on given images, and its pictures beside them."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from archirf_jax.data import passes
from archirf_jax.data.pipeline import Batch, Dataset, finish
from archirf_jax.errors import UserError
from archirf_jax.evaluation import distances, likelihood, neighbours, reference
from archirf_jax.evaluation.features import Extractor
from archirf_jax.evaluation.reference import Sample
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
Halves = dict[str, dict[str, float]]  # "samples" and "real" -> figures of half as many


class Pictures(NamedTuple):
    """Real images, in an order that has no meaning, so that the first ones stand for all.

    Attributes:
        dataset: loaded. size: pixels a side. channels: 1 or 3.
        classes: that the network knows; where it knows one, all labels are 0.
        batch_size: images looked at at a time.
        place: where a batch lies; None = on one device.
    """

    dataset: Dataset
    size: int
    channels: int
    classes: int
    batch_size: int
    place: Any = None

    @property
    def order(self) -> np.ndarray:
        """Every example once."""
        return np.random.default_rng(0).permutation(len(self.dataset.readable))

    def batches(self, count: int | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """uint8 images (b, H, W, C) and labels (b,): the first `count`, from the start again where there are fewer."""
        order = self.order if count is None else np.resize(self.order, count)
        for images, labels in passes.batches(self.dataset, order, self.batch_size, self.size, self.channels):
            yield images, self._known(labels)

    def labels(self, count: int) -> np.ndarray:
        """(count,) int32, those of `batches`; no image is decoded."""
        order, numbers = np.resize(self.order, count), self.dataset.readable
        if self.dataset.labels is not None:
            return self._known(self.dataset.labels[order])
        return self._known(np.asarray([self.dataset.source[int(numbers[index])][1] for index in order]))

    def full_batches(self, count: int, key: jax.Array, what: str) -> Iterator[tuple[int, Batch, jax.Array]]:
        """(how many of them count, images, one key an image) in batches of one size; `what` is said of the progress."""
        done = 0
        for images, labels in self.batches(count):
            count_here = len(images)
            filled = np.arange(self.batch_size) % count_here
            keys = _keys(key, done + filled)
            seen, told, keys = jax.device_put((images[filled], labels[filled], keys), self.place)
            yield count_here, finish(seen, told, False, key), keys
            done += count_here
            logging.log_every_n_seconds(logging.INFO, "%s: %d of %d images", 10, what, done, count)

    def mean(self, values: np.ndarray) -> Figure:
        """The mean of values of the first (N,) images; what is known of one image twice counts once in its error."""
        image = np.arange(len(values)) % len(self.dataset.readable)
        each = np.bincount(image, values) / np.bincount(image)
        error = np.std(each, ddof=1) / math.sqrt(len(each)) if len(each) > 1 else math.nan
        return Figure(float(np.mean(values)), float(error))

    def _known(self, labels: np.ndarray) -> np.ndarray:
        return np.zeros(len(labels), np.int32) if self.classes == 1 else labels.astype(np.int32)


def loss(task: Diffusion | Classifier, params: Any, pictures: Pictures, count: int, key: jax.Array) -> Figures:
    """The loss that training lowers, without dropout, and what goes with it; one time and noise an image.

    The same key draws the same for any parameters, so that smaller differences of two runs count than the errors say.
    """
    state = TrainState(jnp.int32(0), params={}, ema={}, opt=(), memory=task.process.init_memory())

    def draw(key: jax.Array, image: jax.Array, label: jax.Array) -> Any:
        return task.draw(state, Batch(image[None], label[None]), key)

    @jax.jit
    def compute(params: Any, batch: Batch, keys: jax.Array) -> Any:
        drawn = jax.tree.map(lambda x: x[:, 0], jax.vmap(draw)(keys, *batch))  # whatever batch an image came in
        each, aux = task.losses(None)(params, drawn, 0)
        return each, {name: jnp.asarray(value, jnp.float32) for name, value in aux.items()}

    found = []
    for n, batch, keys in pictures.full_batches(count, key, "loss"):
        found.append(jax.tree.map(lambda x, n=n: np.asarray(x)[:n], compute(params, batch, keys)))
    each, aux = jax.tree.map(lambda *parts: np.concatenate(parts), *found)
    quarters = {name: np.asarray(pair) for name, pair in by_time(aux, each).items()}
    others = {name: pictures.mean(value) for name, value in aux.items() if name not in (*INNER, *LARGEST)}
    by_quarter = {name: Figure(float(total / weight)) for name, (total, weight) in quarters.items() if weight}
    return {"loss": pictures.mean(each)} | others | by_quarter


def check_levels(process: Any, levels: int) -> None:
    """Raise a UserError if images of so many levels have less noise than the network was ever told of."""
    least = process.ratio(np.asarray(1 / process.steps)) if isinstance(process, DDPM) else 0
    if levels != BYTE and likelihood.last_ratio(levels) < least:
        most = next(n for n in range(levels, 1, -1) if n == 2 or likelihood.last_ratio(n) >= least)
        raise UserError(
            f"--levels: {levels} are too fine for this DDPM, whose least noise is {least:.2g} of the image; at most "
            f"{most}, or {BYTE} for its variational bound"
        )


def bits_per_dim(
    task: Diffusion, params: Any, pictures: Pictures, count: int, key: jax.Array, levels: int, steps: int, probes: int
) -> Figures:
    """Bits per dimension of images with `levels` grey levels, told their labels.

    Along the probability-flow ODE; by DDPM's variational bound where there are 256 levels, whose half is less noise
    than a DDPM was ever told of. The noise of the bound is a batch's.
    """
    process = task.process
    choice, bound = Choice(guidance_scale=1.0), isinstance(process, DDPM) and levels == BYTE

    @jax.jit
    def compute(params: Any, batch: Batch, keys: jax.Array) -> Any:
        if isinstance(process, DDPM) and bound:
            return process.bits_per_dim(keys[0], task.model_fn(params), *batch)[0], jnp.zeros(len(keys))
        denoise = choice.make_denoiser(process, task.model_fn(params), task.null)
        found = likelihood.of_ode(keys, denoise, *batch, levels=levels, steps=steps, probes=probes)
        return found.value, found.step_error

    found = []
    for n, batch, keys in pictures.full_batches(count, key, "likelihood"):
        found.append(jax.tree.map(lambda x, n=n: np.asarray(x)[:n], compute(params, batch, keys)))
    values, step_errors = (np.concatenate(parts) for parts in zip(*found, strict=True))
    if bound:
        return {"bits_per_dim_bound": pictures.mean(values)}
    steps_alone = Figure(float(np.mean(step_errors)))
    return {"bits_per_dim": pictures.mean(values), "bits_per_dim_step_error": steps_alone}


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


def labels_of(pictures: Pictures, inputs: Inputs, count: int) -> np.ndarray:
    """(count,) labels as often as the real images have them; where labels are rows of conditions, each in turn."""
    if inputs.conditions is not None:
        return np.arange(count, dtype=np.int32) % len(jax.tree.leaves(inputs.conditions)[0])
    return pictures.labels(count)


def draw(sheet: Sheet, labels: np.ndarray, extractor: Extractor) -> Sample:
    """What is seen in one picture a label, the i-th drawn with the i-th key."""
    keys = _keys(sheet.key, np.arange(len(labels)))

    def batches() -> Iterator[np.ndarray]:
        done = 0
        for images in sheet.batches(jnp.asarray(labels), keys):
            yield images
            done += len(images)
            logging.log_every_n_seconds(logging.INFO, "drawn: %d of %d images", 10, done, len(labels))

    return reference.gather(batches(), extractor, len(labels), sheet.batch_size, sheet.place)


def of_samples(sheets: list[Sheet], labels: np.ndarray, real: Sample, extractor: Extractor) -> tuple[Figures, Halves]:
    """(figures of each sheet's samples beside the real images: their mean and standard deviation; of halves)."""
    rows, of_halves = [], []
    for sheet in sheets:
        drawn = draw(sheet, labels, extractor)
        classes = labels if sheet.given.conditions is None else None
        rows.append(compare(real, drawn) | score(drawn, classes, extractor))
        of_halves.append(halves(real, drawn))
    spread = _each(rows, lambda values: np.std(values, ddof=1) if len(values) > 1 else math.nan)
    figures = {name: Figure(value, spread[name]) for name, value in _each(rows, np.mean).items()}
    return figures, {name: _each([row[name] for row in of_halves], np.mean) for name in of_halves[0]}


def compare(real: Sample, drawn: Sample) -> dict[str, float]:
    """How far the drawn images are from the real ones, and what their neighbourhoods tell; at least six of each."""
    return {
        "frechet": distances.frechet(drawn.moments, real.moments),
        "kernel": distances.kernel(drawn.features, real.features, drawn.within, real.within),
        **neighbours.compare(real.features, drawn.features, real.radii, drawn.radii),
    }


def score(drawn: Sample, labels: np.ndarray | None, extractor: Extractor) -> dict[str, float]:
    """What the extractor's classes tell: the share of images that are what was asked for, or the inception score."""
    if drawn.log_p is None:
        return {}
    if not extractor.labelled:
        return {"inception_score": distances.inception_score(drawn.log_p)}
    return {} if labels is None else {"accuracy": float(np.mean(np.argmax(drawn.log_p, axis=1) == labels))}


def halves(real: Sample, drawn: Sample) -> Halves:
    """`compare` of as many images on both sides: half of what is drawn, and of the real ones, beside the other half."""
    middle = min(len(real.features), len(drawn.features)) // 2
    if middle < neighbours.FEWEST:
        return {}
    other = real.part(slice(middle, 2 * middle))
    return {"samples": compare(other, drawn.part(slice(middle))), "real": compare(other, real.part(slice(middle)))}


def _keys(key: jax.Array, numbers: np.ndarray) -> jax.Array:
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.asarray(numbers))


def _each(rows: list[dict[str, float]], of: Callable[[list[float]], Any]) -> dict[str, float]:
    return {name: float(of([row[name] for row in rows])) for name in rows[0]}
