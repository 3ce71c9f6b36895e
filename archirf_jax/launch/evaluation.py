"""Figures of a run: its loss, its samples compared with real images, bits per dimension."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging

from archirf_jax import sharding
from archirf_jax.data.dataset import Dataset
from archirf_jax.data.pipeline import load
from archirf_jax.errors import UserError, nearest
from archirf_jax.evaluation import features
from archirf_jax.evaluation.features import Extractor
from archirf_jax.evaluation.inception import Inception
from archirf_jax.evaluation.neighbours import FEWEST
from archirf_jax.evaluation.reference import Sample
from archirf_jax.files import append_line, atomic_write, cache, expand
from archirf_jax.interop import files, inception
from archirf_jax.launch import latents, sampling, sheet_rows
from archirf_jax.launch.companions import ALONE, Guides
from archirf_jax.launch.features import of_file, of_run
from archirf_jax.launch.runs import Run
from archirf_jax.launch.sampling import CHANNELS, Request
from archirf_jax.samplers.config import SamplerConfig
from archirf_jax.tasks import evaluating, likeness
from archirf_jax.tasks.conditions import read as read_conditions
from archirf_jax.tasks.diffusion import Diffusion
from archirf_jax.tasks.evaluating import Figures, Halves, RealImages
from archirf_jax.training.state import purpose_key

CHOICES = ("loss", "samples", "bits_per_dim")
MOST = 50_000  # images, as papers draw
PIXELS = "pixels"
FILE = "evaluations.jsonl"
LPIPS = "lpips"  # the frozen run
LABELS = {
    "frechet": "Frechet distance",
    "kernel": "kernel distance",
    "inception_score": "inception score",
    "bits_per_dim": "bits per dimension",
    "bits_per_dim_bound": "bits per dimension, bound",
    "bits_per_dim_step_error": "error of the ODE's steps",
}


def metrics_of(run: Run, wanted: Sequence[str] | None) -> tuple[str, ...]:
    """The metrics to measure: those that were asked for, or the usual ones of the task.

    Raises:
        UserError: no such thing, or one that this task does not have.
    """
    draws, there = isinstance(run.task, Diffusion), choices(run)
    usual = there if hasattr(run.task, "reconstruct") else tuple(name for name in there if name != "bits_per_dim")
    asked = usual if wanted is None else tuple(wanted)
    if wanted is None and run.config.data.name == "imported" and draws and not _labels_alone(run):
        asked = ("samples",)
    for name in asked:
        if name not in there:
            what = f"is not one of those of the task {run.config.task}: {', '.join(there)}{nearest(name, there)}"
            raise UserError("metrics", name, what)
    if not asked or len(set(asked)) < len(asked):
        raise UserError("metrics", ",".join(asked), f"must name some of {', '.join(there)}, each once")
    return asked


def choices(run: Run) -> tuple[str, ...]:
    """The metrics of a run's task."""
    if isinstance(run.task, Diffusion):
        return CHOICES
    if not hasattr(run.task, "reconstruct"):
        return CHOICES[:1]
    kinds = tuple(name for name in likeness.KINDS if name != LPIPS or LPIPS in run.runs)
    return kinds if run.config.data.name == "imported" else (*CHOICES[:1], *kinds)


@dataclasses.dataclass(frozen=True)
class Options:
    """How a run is measured.

    Attributes:
        features: what samples are compared by: "pixels", a file with Inception's weights, a classifier's run, or a
            Python file with features(images).
        images: how many to draw and measure; None = as many as the data has, at most MOST.
        repeats: sets of samples, of the seeds from `seed` on.
        levels: bits_per_dim: grey levels of the data.
        ode_steps: bits_per_dim: steps of the ODE, an even number.
        probes: bits_per_dim: random vectors of the trace.
        data: changes of `config.data`: the real images; None = the run's own.
        config: how to sample; None = as the run says.
        guides: runs that guide the samples.
        conditions: .npz file of what the network takes besides labels.
        seed: of times and noise.
        batch_size: images at a time.
        save_images: of an autoencoder: .npz file for `images` and `reconstructions`, uint8 (N, H, W, C).
    """

    features: str = PIXELS
    images: int | None = None
    repeats: int = 1
    levels: int = 256
    ode_steps: int = 200
    probes: int = 8
    data: dict[str, Any] | None = None
    config: SamplerConfig | None = None
    guides: Guides = ALONE
    conditions: pathlib.Path | None = None
    seed: int = 0
    batch_size: int = 128
    save_images: pathlib.Path | None = None


class _Measured(NamedTuple):
    """A run on its devices, the real images, and the row that says how it was measured."""

    run: Run
    how: Options
    real: RealImages
    number: int
    key: jax.Array
    params: Any
    frozen: Any
    mesh: Any
    row: dict[str, Any]


def evaluate_run(run: Run, metrics: Sequence[str] | None = None, **options: Any) -> dict[str, Any]:
    """Measure a run, and add what was found to `evaluations.jsonl` in its directory.

    Args:
        run: whose average is measured.
        metrics: some of CHOICES; None = loss and, where the task draws, samples.
        options: those of `Options`.

    Returns:
        The row: "figures", "errors" and "halves" by name, and how they were measured.

    Raises:
        UserError: something does not fit, or a figure is not finite.
    """
    wanted, how = metrics_of(run, metrics), Options(**options)
    _check(run, wanted, how)
    at = _measured(run, how)
    extractor = make_extractor(how.features, run, at.mesh) if {"samples", "frechet"} & {*wanted} else None
    figures: Figures = {}
    halves: Halves = {}
    if "loss" in wanted:
        state = evaluating.evaluated_state(run.task, at.params)
        figures |= evaluating.loss(run.task, state, at.frozen, at.real, at.number, at.key)
    if "bits_per_dim" in wanted:
        at.row["bits_per_dim"] = ode = dict(levels=how.levels, steps=how.ode_steps, probes=how.probes)
        task = sampling.diffusion(run)
        figures |= evaluating.bits_per_dim(task, at.params, at.frozen, at.real, at.number, at.key, **ode)
    if kinds := [name for name in wanted if name in likeness.KINDS]:
        figures |= _of_reconstructions(at, kinds, extractor if "frechet" in wanted else None)
    if extractor is not None and "samples" in wanted:
        of_samples, halves = _of_samples(at, extractor)
        figures |= of_samples
    return _kept(run, at.row, figures, halves)


def _check(run: Run, wanted: Sequence[str], how: Options) -> None:
    if "samples" in wanted and how.images is not None and how.images < FEWEST:
        raise UserError("images", how.images, f"are too few; at least {FEWEST} are needed")
    if "bits_per_dim" in wanted:
        if run.config.first_stage.name != "image":
            raise UserError("metrics", "bits_per_dim", "is of images, and this run diffuses latents; leave it out")
        if how.ode_steps % 2:
            raise UserError("ode_steps", how.ode_steps, "must be an even number")
        evaluating.check_levels(run.task.process, how.levels)  # type: ignore[attr-defined]


def _measured(run: Run, how: Options) -> _Measured:
    mesh = sharding.make_mesh(devices=jax.local_devices())
    real, source = real_images(run, how.data or {}, how.batch_size, mesh)
    count, key = how.images or min(len(real.dataset), MOST), purpose_key(how.seed, "evaluate")
    row: dict[str, Any] = dict(step=run.step, ema=run.average, data=source, images=count, seed=how.seed)
    row["batch_size"] = real.batch_size
    if names := run.config.get("identity", {}).get("class_names"):
        row["class_names"] = list(names)
    params, frozen = jax.device_put((run.params, run.frozen), sharding.whole(mesh))
    return _Measured(run, how, real, count, key, params, frozen, mesh, row)


def _of_samples(at: _Measured, extractor: Extractor) -> tuple[Figures, Halves]:
    config = at.how.config or sampling.diffusion(at.run).sampling
    at.row.update(features=extractor.name, repeats=at.how.repeats)
    at.row["sampling"] = config.to_dict() | at.how.guides.directories()
    seen, at.row["real_digest"] = evaluating.features_of_real(at.real, extractor, at.number, cache("references"))
    seeds = range(at.how.seed, at.how.seed + at.how.repeats)
    labels, sets = draw(at.run, config, at.how.guides, at.real, at.number, seeds, extractor, at.how.conditions)
    return evaluating.of_samples(sets, labels, seen, extractor)


def _of_reconstructions(at: _Measured, wanted: Sequence[str], extractor: Extractor | None) -> Figures:
    task: Any = at.run.task
    batches = list(likeness.reconstruct(task, at.params, at.frozen, at.real, at.number))
    if extractor is not None:
        at.row["features"] = extractor.name
    distance = functools.partial(jax.jit(task.perceptual), at.frozen) if LPIPS in wanted else None
    if at.how.save_images is not None:
        arrays = {"images": [batch.images for batch in batches], "reconstructions": [batch.made for batch in batches]}
        whole: dict[str, Any] = {name: np.concatenate(parts) for name, parts in arrays.items()}
        atomic_write(at.how.save_images, lambda file: np.savez(file, **whole))
        logging.info("images and reconstructions are in %s", at.how.save_images)
    return likeness.measure(batches, at.real, wanted, extractor, distance)


def real_images(run: Run, changes: dict[str, Any], batch_size: int, mesh: Any) -> tuple[RealImages, dict[str, Any]]:
    """(the real images, where they are from): those of the run, or of another set.

    Raises:
        UserError: no such set, or one of other classes.
    """
    names = ("name", "dir", "split", "label_key", "skip_unreadable", "value_range")
    data = latents.images_of(run.config.data)
    data.update(changes)
    if data.channels not in CHANNELS:
        raise UserError("data.channels", data.channels, "cannot be compared with images, which have 1 or 3")
    if data.name == "imported":
        raise UserError("data.name", message="is missing; imported weights do not say which images they are of")
    dataset: Dataset = run.data if run.data is not None and data == run.config.data and not changes else load(data)
    found, known = dataset.num_classes, run.config.data.num_classes
    labelled = "label" in run.task.needs if isinstance(run.task, Diffusion) else not hasattr(run.task, "reconstruct")
    if labelled and known > 1 and found != known:
        what = f"has {found} classes by {data.label_key!r}, but the run knows {known}"
        raise UserError("data.name", data.name, what)
    if labelled and known > 1:
        sheet_rows.check_classes(run, dataset)
    size = -(-min(batch_size, len(dataset)) // mesh.size) * mesh.size
    place = sharding.of_batch(mesh) if mesh.size > 1 else None
    return RealImages(dataset.centred(), known, size, place), {name: data.get(name) for name in names}


def make_extractor(text: str, run: Run, mesh: Any) -> Extractor:
    """The extractor of the features by which samples are compared.

    Raises:
        UserError: no such file or run, or one that does not take these images.
    """
    path = expand(text, "features")
    if text == PIXELS:
        return features.pixels()
    if path.is_dir():
        other = of_run(path)
        for name in ("image_size", "channels", "num_classes"):
            ours, theirs = run.config.data[name], other.config.data[name]
            if theirs != ours:
                what = f"must be about the run's images, but its data.{name} is {theirs} and theirs {ours}"
                raise UserError("features", str(path), what)
        params = jax.device_put(other.params, sharding.whole(mesh))
        about = json.dumps([other.config.model.to_dict(), other.config.process.to_dict()], sort_keys=True)
        task: Any = other.task
        return features.classifier(f"{path} at step {other.step}", about, params, task.features, task.log_classes)
    if path.suffix == ".py" and path.is_file():
        return features.python_file(str(path), of_file(path))
    if path.suffix not in (".safetensors", *files.TORCH):
        raise UserError(
            *("features", text),
            "is neither pixels, nor Inception's weights in a file such as pt_inception-2015-12-05.pth, nor the run of "
            "a classifier, nor a Python file",
        )
    params = inception.load(Inception(), files.read(path, "features"), "features")
    return features.inception(jax.device_put(params, sharding.whole(mesh)))


def draw(
    run: Run,
    config: SamplerConfig,
    guides: Guides,
    real: RealImages,
    count: int,
    seeds: Iterable[int],
    extractor: Extractor,
    conditions: pathlib.Path | None,
) -> tuple[np.ndarray | None, Iterator[Sample]]:
    """(labels (count,), features of a set of samples for each seed).

    Labels are as frequent as the real images have them; rows of a file of conditions come each in turn, and a network
    that is conditioned on other fields of the data is given those of the real images.
    """
    task, request = sampling.diffusion(run), Request(config)
    if conditions is not None:
        whole, null = read_conditions(conditions, task, config.asks_null)
        order = np.arange(count) % len(next(iter(whole.values())))
        batch, labels = jax.tree.map(lambda leaf: leaf[order], whole), None
        guides = guides._replace(null=null)
    elif task.labels_alone:
        labels = real.labels(count)
        batch = {"label": labels}
    else:
        fields = real.finished(count, jax.random.key(0), "conditions")
        finished = [jax.tree.map(lambda x, n=n: np.asarray(x)[:n], part) for n, part, _ in fields]
        together = jax.tree.map(lambda *parts: np.concatenate(parts), *finished)
        batch, labels = task.without_usual(together), together.get("label")

    def sets() -> Iterator[Sample]:
        for seed in seeds:
            key = purpose_key(seed, "sample")
            keys = jax.vmap(lambda i, key=key: jax.random.fold_in(key, i))(np.arange(count))
            options: dict[str, Any] = dict(guides=guides, batch_size=real.batch_size, place=real.place)
            batches = sampling.sample_images(run, batch, keys, request, **options)
            yield evaluating.features_of_samples(batches, count, extractor, real.batch_size, real.place)

    return labels, sets()


def table(figures: Figures, halves: Halves) -> list[str]:
    """Lines for people: value, standard error or spread, and the same of half of the samples and real images."""
    lines = [f"{'':26}{'value':>12}{'+-':>11}" + "".join(f"{f'half, {name}':>16}" for name in halves)]
    for name, (value, error) in figures.items():
        spread = f"{error:.2g}" if np.isfinite(error) else ""
        of_halves = "".join(f"{half[name]:16.5g}" for half in halves.values() if name in half)
        lines.append(f"{LABELS.get(name, name):26}{value:12.5g}{spread:>11}{of_halves}")
    return [line.rstrip() for line in lines]


def _labels_alone(run: Run) -> bool:
    return isinstance(run.task, Diffusion) and run.task.labels_alone


def _kept(run: Run, row: dict[str, Any], figures: Figures, halves: Halves) -> dict[str, Any]:
    for line in table(figures, halves):
        logging.info("%s", line)
    values = {name: figure.value for name, figure in figures.items()}
    errors = {name: figure.error for name, figure in figures.items() if np.isfinite(figure.error)}
    for name, value in values.items():
        if not np.isfinite(value):
            raise UserError("step", run.step, f"gives {name} = {value}; choose another checkpoint")
    known = {half: {name: value for name, value in of.items() if np.isfinite(value)} for half, of in halves.items()}
    whole = dict(figures=values, errors=errors, halves=known) | row
    append_line(run.directory / FILE, json.dumps(whole, allow_nan=False))
    return whole
