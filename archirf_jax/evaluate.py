"""python -m archirf_jax.evaluate --workdir=runs/dit_rf [--features=pt_inception-2015-12-05.pth]

How good a run's average is: its loss on images of a data set, and how its own pictures compare with them. Figures are
printed, and added as one line of JSON to WORKDIR/evaluations.jsonl. docs/evaluation.md tells what each means.
"""

from __future__ import annotations

import json
import os
import pathlib
import types
from typing import Any

import jax
import numpy as np
from absl import flags, logging

from archirf_jax import sharding
from archirf_jax.data.pipeline import Dataset, load
from archirf_jax.errors import UserError, nearest
from archirf_jax.evaluation import features
from archirf_jax.evaluation.features import Extractor
from archirf_jax.evaluation.inception import Inception
from archirf_jax.evaluation.neighbours import FEWEST
from archirf_jax.interop import files, inception
from archirf_jax.launch import cli
from archirf_jax.launch.features import of_file, of_run
from archirf_jax.launch.sampling import Flags, Opened
from archirf_jax.tasks import edits, evaluating
from archirf_jax.tasks.diffusion import Diffusion
from archirf_jax.tasks.evaluating import Figures, Halves, Pictures
from archirf_jax.training.state import purpose_key

RUN = Flags()
METRICS = flags.DEFINE_list("metrics", None, "some of loss, samples, bits_per_dim; default: loss and, if any, samples")
FEATURES = flags.DEFINE_string(
    "features", "pixels", "what samples are compared by: pixels, Inception's weights, a classifier's run, a Python file"
)
IMAGES = flags.DEFINE_integer(
    "images",
    *(None, "how many to draw and measure; default: as many as the data has, at most 50000"),
    lower_bound=1,
    upper_bound=10_000_000,
)
REPEATS = flags.DEFINE_integer("repeats", 1, "sets of samples to draw, of the seeds from --seed on", lower_bound=1)
LEVELS = flags.DEFINE_integer("levels", 256, "bits_per_dim: grey levels of the data, at even distances", lower_bound=2)
ODE_STEPS = flags.DEFINE_integer("ode_steps", 200, "bits_per_dim: steps of the ODE, an even number", lower_bound=2)
PROBES = flags.DEFINE_integer("probes", 8, "bits_per_dim: random vectors of the trace, 2 or more", lower_bound=2)
# The real images; what is not given is the run's config.data.
DATA = {
    "name": flags.DEFINE_string("data", None, "TFDS name or folder:PATH of the real images; default: those of the run"),
    "dir": flags.DEFINE_string("data_dir", None, "folder of prepared TFDS sets"),
    "split": flags.DEFINE_string("split", None, "TFDS split or part of one, such as test or train[80%:]"),
    "label_key": flags.DEFINE_string("label_key", None, "TFDS feature with the class"),
    "skip_unreadable": flags.DEFINE_bool("skip_unreadable", None, "leave unreadable images of a folder out"),
}
# Flags that are of no use to other metrics.
OWN = {"samples": (FEATURES, REPEATS), "bits_per_dim": (LEVELS, ODE_STEPS, PROBES)}

CHOICES = ("loss", "samples", "bits_per_dim")
MOST = 50_000  # images, as papers draw
PIXELS = "pixels"
FILE = "evaluations.jsonl"
LABELS = {
    "frechet": "Frechet distance",
    "kernel": "kernel distance",
    "inception_score": "inception score",
    "bits_per_dim": "bits per dimension",
    "bits_per_dim_bound": "bits per dimension, bound",
    "bits_per_dim_step_error": "error of the ODE's steps",
}


def asked(task: Any) -> tuple[str, ...]:
    """What is to be measured.

    Raises:
        UserError: no such thing, one that this task has not, or a flag that belongs to what is not measured.
    """
    draws, told_more = isinstance(task, Diffusion), getattr(task, "takes_conditions", False)
    usual = (() if told_more else ("loss",)) + (("samples",) if draws else ())
    wanted = usual if METRICS.value is None else tuple(METRICS.value)
    for name in wanted:
        if name not in CHOICES:
            raise UserError(f"--metrics: {name!r} is not one of {', '.join(CHOICES)}{nearest(name, CHOICES)}")
        if name != "loss" and not draws:
            raise UserError(f"--metrics: {name!r} belongs to networks that draw, and a classifier has loss alone")
        if name != "samples" and told_more:
            raise UserError(f"--metrics: {name!r} is of images with labels, and this network is told more")
    if not wanted or len(set(wanted)) < len(wanted):
        raise UserError(f"--metrics: {','.join(wanted)!r} must name some of {', '.join(CHOICES)}, each once")
    for metric, own in OWN.items():
        given = [flag.name for flag in own if flag.present] + (list(RUN.given) if metric == "samples" else [])
        if metric not in wanted and given:
            raise UserError(f"--{given[0]}: belongs to --metrics={metric}; leave it out")
    if ODE_STEPS.value % 2:
        raise UserError(f"--ode_steps: {ODE_STEPS.value} must be an even number")
    if "samples" in wanted and IMAGES.value is not None and IMAGES.value < FEWEST:
        raise UserError(f"--images: {IMAGES.value} are too few; at least {FEWEST} are needed")
    return wanted


def real_images(config: Any, labelled: bool) -> tuple[Any, Dataset]:
    """(`config.data` with the flags' changes, the set); `labelled` networks are told the classes of the set.

    Raises:
        UserError: no such set, or another number of classes.
    """
    data = dict(config.data, **{field: flag.value for field, flag in DATA.items() if flag.value is not None})
    named = types.SimpleNamespace(**{"resident_mib": 2048, "skip_unreadable": False} | data)
    if named.channels not in edits.PICTURES:
        raise UserError(f"--workdir: {named.channels} channels are no picture, and nothing compares them with images")
    if named.name == "imported":
        raise UserError("--data: is missing; imported weights do not say which images they are of")
    try:
        dataset = load(named)
    except UserError as e:
        raise UserError(_with_flags(str(e))) from e
    found, known = len(dataset.source.class_names), config.data.num_classes
    if labelled and found != known > 1:
        raise UserError(f"--data: {named.name!r} has {found} classes by {named.label_key!r}, but the run knows {known}")
    return named, dataset


def make_extractor(config: Any, mesh: Any) -> Extractor:
    """What --features names.

    Raises:
        UserError: no such file or run, or one that does not take these images.
    """
    text = FEATURES.value
    path = pathlib.Path(text).expanduser()
    if text == PIXELS:
        return features.pixels()
    if path.is_dir():
        task, step, params, there = of_run(path)
        for name in ("image_size", "channels", "num_classes"):
            if there.data[name] != config.data[name]:
                raise UserError(
                    f"--features: {str(path)!r} must be about the images of --workdir, but config.data.{name} is "
                    f"{there.data[name]} there and {config.data[name]} here"
                )
        params = jax.device_put(params, sharding.whole(mesh))
        about = json.dumps([there.model.to_dict(), there.process.to_dict()], sort_keys=True)
        return features.classifier(f"{path} at step {step}", about, params, task.features, task.log_classes)
    if path.suffix == ".py" and path.is_file():
        return features.somebodys(str(path), of_file(path))
    if path.suffix not in (".safetensors", *files.TORCH):
        raise UserError(
            f"--features: {text!r} is neither pixels, nor Inception's weights in a file such as "
            "pt_inception-2015-12-05.pth, nor the run of a classifier, nor a Python file"
        )
    params = inception.load(Inception(), files.read(path, "features"), "features")
    return features.inception(jax.device_put(params, sharding.whole(mesh)))


def make_sheets(run: Opened, task: Diffusion, pictures: Pictures) -> list[edits.Sheet]:
    """Who draws each of the --repeats sets of samples."""
    task.sampler(run.choice, 0, run.weaker, run.log_p)  # what does not fit is known before anything is measured
    shape: tuple[Any, ...] = ([], 1, pictures.batch_size, run.inputs, run.weaker, run.log_p, pictures.place)
    seeds = range(RUN.seed.value, RUN.seed.value + REPEATS.value)
    return [edits.Sheet(task, run.params, run.choice, purpose_key(seed, "sample"), *shape) for seed in seeds]


def table(figures: Figures, halves: Halves) -> list[str]:
    """Lines for people: value, standard error or spread, and beside it half of the samples and of the real images."""
    lines = [f"{'':26}{'value':>12}{'+-':>11}" + "".join(f"{f'half, {name}':>16}" for name in halves)]
    for name, (value, error) in figures.items():
        spread = f"{error:.2g}" if np.isfinite(error) else ""
        beside = "".join(f"{half[name]:16.5g}" for half in halves.values() if name in half)
        lines.append(f"{LABELS.get(name, name):26}{value:12.5g}{spread:>11}{beside}")
    return [line.rstrip() for line in lines]


def make_pictures(config: Any, task: Any, mesh: Any) -> tuple[Pictures, dict[str, Any]]:
    """(the real images, where they are from)."""
    data, dataset = real_images(config, labelled=not getattr(task, "takes_conditions", False))
    batch_size = -(-RUN.batch_size.value // mesh.size) * mesh.size
    place = sharding.of_batch(mesh) if mesh.size > 1 else None
    classes = config.data.num_classes
    pictures = Pictures(dataset, data.image_size, data.channels, classes, batch_size, place)
    return pictures, {name: getattr(data, name) for name in DATA}


def measure(config: Any, task: Any) -> dict[str, Any]:
    """The row: what was measured, and how."""
    wanted, mesh = asked(task), sharding.make_mesh(devices=jax.local_devices())
    everywhere = sharding.whole(mesh)
    if "bits_per_dim" in wanted:
        evaluating.check_levels(task.process, LEVELS.value)
    run = RUN.open(task) if "samples" in wanted else None
    step, params = (run.step, run.params) if run else RUN.restore(task)
    pictures, data = make_pictures(config, task, mesh)
    count, key = IMAGES.value or min(len(pictures.dataset.readable), MOST), purpose_key(RUN.seed.value, "evaluate")
    params = jax.device_put(params, everywhere)
    row: dict[str, Any] = dict(step=step, ema=RUN.ema.value, data=data, images=count, seed=RUN.seed.value)
    row["batch_size"] = pictures.batch_size
    if run is not None:
        run = run._replace(params=params, inputs=jax.device_put(run.inputs, everywhere))
        sheets, extractor = make_sheets(run, task, pictures), make_extractor(config, mesh)
        row |= dict(features=extractor.name, repeats=REPEATS.value, sampling=RUN.given | vars(run.choice))
    logging.info("step %d of %s, average %s, %s of %s", step, RUN.workdir, RUN.ema.value, data["split"], data["name"])

    figures: Figures = {}
    halves: Halves = {}
    if run is not None:
        real, row["real_digest"] = evaluating.look(pictures, extractor, count, cli.cache("references"))
    if "loss" in wanted:
        figures |= evaluating.loss(task, params, pictures, count, key)
    if "bits_per_dim" in wanted:
        row["bits_per_dim"] = dict(levels=LEVELS.value, steps=ODE_STEPS.value, probes=PROBES.value)
        figures |= evaluating.bits_per_dim(task, params, pictures, count, key, **row["bits_per_dim"])
    if run is not None:
        labels = evaluating.labels_of(pictures, run.inputs, count)
        of_samples, halves = evaluating.of_samples(sheets, labels, real, extractor)
        figures |= of_samples
    return tell(figures, halves) | row


def tell(figures: Figures, halves: Halves) -> dict[str, Any]:
    """The part of the row that was measured, which is also shown."""
    for line in table(figures, halves):
        logging.info("%s", line)
    values = {name: figure.value for name, figure in figures.items()}
    errors = {name: figure.error for name, figure in figures.items() if np.isfinite(figure.error)}
    return dict(figures=values, errors=errors, halves=halves)


def main(argv: list[str]) -> None:
    """Restore, measure, tell, save."""
    del argv
    RUN.check()
    config, task = RUN.task()
    path = RUN.workdir / FILE
    if path.is_dir() or not os.access(path if path.exists() else RUN.workdir, os.W_OK):
        raise UserError(f"--workdir: {str(path)!r}, where what is measured goes to, cannot be written")
    try:
        row = measure(config, task)
    except UserError as e:
        raise RUN.as_flag(e) from e
    wrong = [name for name, value in row["figures"].items() if not np.isfinite(value)]
    if wrong:
        raise UserError(f"--step: {wrong[0]} of step {row['step']} is {row['figures'][wrong[0]]}; choose another step")
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")
    logging.info("added to %s", path)


def _with_flags(message: str) -> str:
    """A message about config.data, where its fields are flags."""
    for field, flag in DATA.items():
        message = message.replace(f"--config.data.{field}", f"--{flag.name}")
        message = message.replace(f"config.data.{field}", f"--{flag.name}")
    return message


if __name__ == "__main__":
    cli.run(main)
