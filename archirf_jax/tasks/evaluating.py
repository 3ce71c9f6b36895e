"""How good a run is: its loss and likelihood on given images, and its samples compared with them."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from archirf_jax.contracts import Batch, Network, TrainState
from archirf_jax.data import passes
from archirf_jax.data.dataset import Dataset
from archirf_jax.data.fields import finish, unflipped
from archirf_jax.errors import UserError
from archirf_jax.evaluation import distances, likelihood, neighbours, reference
from archirf_jax.evaluation.features import Extractor
from archirf_jax.evaluation.reference import Sample
from archirf_jax.processes.ddpm import DDPM
from archirf_jax.processes.variational_bound import bits_per_dim as variational_bits
from archirf_jax.tasks.diffusion import Diffusion

LEVELS_OF_A_BYTE = 256


class Figure(NamedTuple):
    """A mean and its standard error; nan = unknown."""

    value: float
    error: float = math.nan


Figures = dict[str, Figure]
Halves = dict[str, dict[str, float]]  # "samples" and "real" -> figures of half as many


class RealImages(NamedTuple):
    """Real images in a random order, so that the first ones represent all.

    Attributes:
        dataset: loaded.
        classes: that the network knows; where it knows one, all labels are 0.
        batch_size: images at a time.
        place: where a batch lies; None = on one device.
    """

    dataset: Dataset
    classes: int
    batch_size: int
    place: Any = None

    @property
    def order(self) -> np.ndarray:
        """Every example once."""
        return np.random.default_rng(0).permutation(len(self.dataset))

    def batches(self, count: int | None = None) -> Iterator[dict[str, np.ndarray]]:
        """Decoded fields (b, ...): the first `count` examples, from the start again where there are fewer."""
        order = self.order if count is None else np.resize(self.order, count)
        for arrays in passes.batches(self.dataset, order, self.batch_size):
            yield arrays | self._known(arrays)

    def images(self, count: int | None = None) -> Iterator[np.ndarray]:
        """uint8 images (b, H, W, C) of `batches`."""
        return (arrays["image"] for arrays in self.batches(count))

    def labels(self, count: int) -> np.ndarray:
        """(count,) int32, those of `batches`."""
        if "label" not in self.dataset.fields:
            return np.zeros(count, np.int32)
        order, arrays = np.resize(self.order, count), self.dataset.arrays
        if arrays is not None:
            return self._known({"label": arrays["label"][order]})["label"]
        source, readable = self.dataset.source, self.dataset.readable
        return self._known({"label": np.asarray([source[int(readable[i])]["label"] for i in order])})["label"]

    def finished(self, count: int, key: jax.Array, what: str) -> Iterator[tuple[int, Batch, jax.Array]]:
        """(how many of them count, a batch, one key an example) in batches of one size; `what` names the progress.

        Images are as they are: none is mirrored, whatever training does.
        """
        fields, done = unflipped(self.dataset.fields), 0
        compute = jax.jit(lambda arrays: finish(fields, arrays, key))
        for arrays in self.batches(count):
            found = len(arrays["image"])
            rows = np.arange(self.batch_size) % found
            keys = _keys(key, done + rows)
            mine, keys = jax.device_put(({name: array[rows] for name, array in arrays.items()}, keys), self.place)
            yield found, compute(mine), keys
            done += found
            logging.log_every_n_seconds(logging.INFO, "%s: %d of %d images", 10, what, done, count)

    def mean(self, values: np.ndarray) -> Figure:
        """The mean of values of the first (N,) images; an image that is there twice counts once in the error."""
        image = np.arange(len(values)) % len(self.dataset)
        each = np.bincount(image, values) / np.bincount(image)
        error = np.std(each, ddof=1) / math.sqrt(len(each)) if len(each) > 1 else math.nan
        return Figure(float(np.mean(values)), float(error))

    def _known(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if "label" not in arrays:
            return {}
        labels = arrays["label"].astype(np.int32)
        return {"label": np.zeros_like(labels) if self.classes == 1 else labels}


def loss(task: Any, state: TrainState, frozen: Any, images: RealImages, count: int, key: jax.Array) -> Figures:
    """The loss that training lowers, of each network, without dropout; one time and noise an image.

    The same key gives the same times and noise for any parameters, so two runs can be compared more finely than the
    standard errors suggest.

    Args:
        task: of the run.
        state: with the averages as parameters.
        frozen: parameters of the frozen runs.
        images: real ones.
        count: how many of them.
        key: of times and noise.
    """
    figures: Figures = {}
    for i, network in enumerate(state.networks):
        found = _loss(task, state, frozen, images, count, key, network)
        figures |= {name if i == 0 else f"{network}/{name}": figure for name, figure in found.items()}
    return figures


def _loss(
    task: Any, state: TrainState, frozen: Any, images: RealImages, count: int, key: jax.Array, network: str
) -> Figures:
    def each(state: TrainState, frozen: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, Any]:
        one = jax.tree.map(lambda leaf: leaf[None], batch)
        drawn, losses = task.losses(state, frozen, one, key, network, train=False)
        found, reported, _ = losses(state.networks[network].params, drawn, 0)
        return found[0], reported

    # An example at a time, so that what is drawn for it does not depend on its batch.
    compute = jax.jit(jax.vmap(each, in_axes=(None, None, 0, 0)))
    found = []
    for n, batch, keys in images.finished(count, key, "loss"):
        found.append(jax.tree.map(lambda x, n=n: np.asarray(x)[:n], compute(state, frozen, batch, keys)))
    losses, reported = jax.tree.map(lambda *parts: np.concatenate(parts), *found)
    pairs = {name: np.sum(pair, axis=0) for name, pair in reported.items()}
    others = {name: Figure(float(total / weight)) for name, (total, weight) in pairs.items() if weight}
    return {"loss": images.mean(losses)} | others


def evaluated_state(task: Any, params: Any) -> TrainState:
    """A state of a task's main network whose parameters and average are `params`, by module; it cannot be trained."""
    objective_state = task.objective.init() if hasattr(getattr(task, "objective", None), "init") else ()
    network = Network(params=params, averages={"ema": params}, opt=(), objective_state=objective_state)
    return TrainState(jnp.int32(0), {next(iter(task.updates)): network})


def check_levels(process: Any, levels: int) -> None:
    """Raise a UserError if images of so many levels have less noise than the network ever saw."""
    least = process.ratio(np.asarray(1 / process.steps)) if isinstance(process, DDPM) else 0
    if levels != LEVELS_OF_A_BYTE and likelihood.last_ratio(levels) < least:
        most = next(n for n in range(levels, 1, -1) if n == 2 or likelihood.last_ratio(n) >= least)
        raise UserError(
            *("levels", levels),
            f"are too fine for this DDPM, whose least noise is {least:.2g} of the image; take at most {most}, or "
            f"{LEVELS_OF_A_BYTE} for its variational bound",
        )


def bits_per_dim(
    task: Diffusion,
    params: Any,
    frozen: Any,
    images: RealImages,
    count: int,
    key: jax.Array,
    levels: int,
    steps: int,
    probes: int,
) -> Figures:
    """Bits per dimension of images with `levels` grey levels, with their conditions.

    Along the probability-flow ODE; by DDPM's variational bound where there are 256 levels, whose half is less noise
    than a DDPM ever saw. The noise of the bound is a batch's.
    """
    process = task.process
    bound = isinstance(process, DDPM) and levels == LEVELS_OF_A_BYTE

    @jax.jit
    def compute(params: Any, frozen: Any, batch: Batch, keys: jax.Array) -> Any:
        condition = task.conditioner(frozen, batch, keys)
        if isinstance(process, DDPM) and bound:
            model_fn = task.model_fn(params)
            return variational_bits(process, keys[0], model_fn, batch["image"], condition)[0], jnp.zeros(len(keys))
        denoise = task.network_denoiser(params, higher_derivatives=True)
        ode = dict(levels=levels, steps=steps, probes=probes)
        found = likelihood.of_ode(keys, denoise, batch["image"], condition, **ode)
        return found.value, found.step_error

    found = []
    for n, batch, keys in images.finished(count, key, "likelihood"):
        found.append(jax.tree.map(lambda x, n=n: np.asarray(x)[:n], compute(params, frozen, batch, keys)))
    values, step_errors = (np.concatenate(parts) for parts in zip(*found, strict=True))
    if bound:
        return {"bits_per_dim_bound": images.mean(values)}
    return {"bits_per_dim": images.mean(values), "bits_per_dim_step_error": Figure(float(np.mean(step_errors)))}


def features_of_real(images: RealImages, extractor: Extractor, count: int, folder: pathlib.Path) -> tuple[Sample, str]:
    """(features of the real images, `count` of them one by one; the images' digest), kept in `folder` for later."""
    digest = reference.digest(images.images())

    def make() -> Sample:
        return reference.gather(images.images(), extractor, count, images.batch_size, images.place)

    real = reference.recall(folder, digest, extractor, count, make)
    width = real.features.shape[1]
    if len(real.features) < neighbours.FEWEST:
        raise UserError(
            "data.name", message=f"{len(real.features)} images are too few; take {neighbours.FEWEST} or more"
        )
    logging.info("%d real images, %d features by %s", real.moments.images, width, extractor.name)
    if min(count, real.moments.images) <= width:
        logging.warning("there are no more images than features, so the Frechet distance mostly shows their number")
    return real, digest


def features_of_samples(
    batches: Iterable[np.ndarray], count: int, extractor: Extractor, batch_size: int, place: Any
) -> Sample:
    """Features of `count` generated images, given a batch at a time."""

    def counted() -> Iterator[np.ndarray]:
        done = 0
        for images in batches:
            yield images
            done += len(images)
            logging.log_every_n_seconds(logging.INFO, "drawn: %d of %d images", 10, done, count)

    return reference.gather(counted(), extractor, count, batch_size, place)


def of_samples(
    sets: Iterable[Sample], labels: np.ndarray | None, real: Sample, extractor: Extractor
) -> tuple[Figures, Halves]:
    """(figures of sets of samples compared with the real images: their mean and standard deviation; of halves)."""
    rows, of_halves = [], []
    for drawn in sets:
        rows.append(compare(real, drawn) | score(drawn, labels, extractor))
        of_halves.append(halves(real, drawn))
    spread = _each(rows, lambda values: np.std(values, ddof=1) if len(values) > 1 else math.nan)
    figures = {name: Figure(value, spread[name]) for name, value in _each(rows, np.mean).items()}
    return figures, {name: _each([row[name] for row in of_halves], np.mean) for name in of_halves[0]}


def compare(real: Sample, drawn: Sample) -> dict[str, float]:
    """Distances of the drawn images from the real ones, and how their neighbourhoods overlap; at least six of each."""
    return {
        "frechet": distances.frechet(drawn.moments, real.moments),
        "kernel": distances.kernel(drawn.features, real.features, drawn.within, real.within),
        **neighbours.compare(real.features, drawn.features, real.radii, drawn.radii),
    }


def score(drawn: Sample, labels: np.ndarray | None, extractor: Extractor) -> dict[str, float]:
    """The share of images that a classifier gives the asked label, or the inception score."""
    if drawn.log_p is None:
        return {}
    if not extractor.labelled:
        return {"inception_score": distances.inception_score(drawn.log_p)}
    return {} if labels is None else {"accuracy": float(np.mean(np.argmax(drawn.log_p, axis=1) == labels))}


def halves(real: Sample, drawn: Sample) -> Halves:
    """`compare` of half of the samples, and of as many real images, with the other half of the real images."""
    middle = min(len(real.features), len(drawn.features)) // 2
    if middle < neighbours.FEWEST:
        return {}
    other = real.part(slice(middle, 2 * middle))
    return {"samples": compare(other, drawn.part(slice(middle))), "real": compare(other, real.part(slice(middle)))}


def _keys(key: jax.Array, numbers: np.ndarray) -> jax.Array:
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.asarray(numbers))


def _each(rows: list[dict[str, float]], of: Callable[[list[float]], Any]) -> dict[str, float]:
    return {name: float(of([row[name] for row in rows])) for name in rows[0]}
