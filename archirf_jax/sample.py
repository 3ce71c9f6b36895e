"""python -m archirf_jax.sample --workdir=runs/dit_rf --labels=0-9 --per_class=8 --out=samples.png

Draw images from a run's EMA weights: a grid (.png), an animation (.gif), or arrays (.npz). With --to_seed, --image,
--image_to and --mask: ways between two noises or two pictures, pictures begun from another, filled holes.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags, logging

from archirf_jax import registry, tasks
from archirf_jax.data.images import read_image
from archirf_jax.data.sources import open_source
from archirf_jax.errors import UserError
from archirf_jax.launch import cli
from archirf_jax.launch import config as configuration
from archirf_jax.samplers.choice import Choice
from archirf_jax.tasks import edits
from archirf_jax.tasks.building import make_process
from archirf_jax.tasks.classifier import Classifier
from archirf_jax.tasks.conditions import read as read_conditions
from archirf_jax.tasks.diffusion import NOTHING, Diffusion, Inputs
from archirf_jax.training.checkpoints import Checkpoints
from archirf_jax.training.state import purpose_key
from archirf_jax.visuals import pictures

WORKDIR = flags.DEFINE_string("workdir", None, "run directory", required=True)
LABELS = flags.DEFINE_string("labels", None, "classes to draw, such as 0-9 or 0,3,7-8; default: all, at most ten")
PER_CLASS = flags.DEFINE_integer("per_class", 8, "images a class", lower_bound=1, upper_bound=1_000_000)
SEED = flags.DEFINE_integer("seed", 0, "of the noise", lower_bound=0, upper_bound=2**31 - 1)
STEP = flags.DEFINE_integer("step", None, "checkpoint to use; default: the newest")
EMA = flags.DEFINE_string("ema", "ema", "which average to draw with, such as decay_0.999; default: config.ema.decay's")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 128, "images drawn at a time", lower_bound=1)
OUT = flags.DEFINE_string("out", "samples.png", "file to write: .png, .gif or .npz")
STRIDE = flags.DEFINE_integer("stride", None, "a .gif of fresh images shows every so many steps", lower_bound=1)

# How to sample; what is not given is the run's config.sample.
CHOICE = {
    "solver": flags.DEFINE_string("solver", None, "euler, heun, ddim, ...: a file of archirf_jax/samplers/solvers"),
    "steps": flags.DEFINE_integer("steps", None, "solver steps", lower_bound=1, upper_bound=1_000_000),
    "grid": flags.DEFINE_string("grid", None, "uniform, shifted, karras, trailing, ... or a respacing such as 250"),
    "shift": flags.DEFINE_float("shift", None, "SD3's timestep shift, for the grid 'shifted'"),
    "eta": flags.DEFINE_float("eta", None, "noise of ddim (0 to 1) and euler_maruyama", lower_bound=0),
    "churn": flags.DEFINE_float("churn", None, "noise of edm (S_churn)", lower_bound=0),
    "guidance": flags.DEFINE_string("guidance", None, "classifier_free, adaptive_projected or autoguidance"),
    "guidance_scale": flags.DEFINE_float("guidance_scale", None, "1 is off", lower_bound=0),
    "guidance_interval": flags.DEFINE_string(
        "guidance_interval", None, "times in which guidance acts, such as 0.2,0.8"
    ),
    "guidance_rescale": flags.DEFINE_float("guidance_rescale", None, "0 to 1, against too much contrast"),
    "guidance_parallel": flags.DEFINE_float("guidance_parallel", None, "adaptive_projected: share along the image"),
    "guidance_longest": flags.DEFINE_float("guidance_longest", None, "adaptive_projected: length to cut to; 0 = never"),
    "guidance_momentum": flags.DEFINE_float("guidance_momentum", None, "adaptive_projected: weight of the past"),
    "classifier_scale": flags.DEFINE_float("classifier_scale", None, "of the gradient of --classifier", lower_bound=0),
    "threshold": flags.DEFINE_string("threshold", None, "none, static or dynamic"),
}
WEAK_WORKDIR = flags.DEFINE_string("weak_workdir", None, "autoguidance: run of the weaker network; default: this run")
WEAK_STEP = flags.DEFINE_integer("weak_step", None, "autoguidance: its checkpoint")
CLASSIFIER = flags.DEFINE_string("classifier", None, "guide by the noisy classifier of this run")
CONDITIONS = flags.DEFINE_string(
    "conditions", None, ".npz of what a network takes beside labels, such as tokens and pooled; --labels are its rows"
)

TO_SEED = flags.DEFINE_integer(
    "to_seed", None, "go from the noise of --seed to that of this one", lower_bound=0, upper_bound=2**31 - 1
)
IMAGE = flags.DEFINE_string("image", None, "begin from this picture: a file, or the number of a training image")
IMAGE_TO = flags.DEFINE_string("image_to", None, "go from --image to this picture")
STRENGTH = flags.DEFINE_float("strength", None, "how much of --image becomes noise, above 0 to 1; default 0.6")
MASK = flags.DEFINE_string("mask", None, "fill the white part of this picture, or left, right, top, bottom of --image")

# Fields of the process and data in which a second run may differ.
DIFFERING = {
    "weak_workdir": (),
    "classifier": ("process.condition_dropout", "process.variance", "process.bound_weight", "process.likelihood"),
}
SAME_DATA = ("num_classes", "channels", "image_size")
FORMATS = (".png", ".gif", ".npz")
HALVES = ("left", "right", "top", "bottom")
# What a choice brings with it: what the run set for its own does not follow to another.
OPTIONS = {
    "solver": ("eta", "churn"),
    "grid": ("shift",),
    "guidance": ("guidance_rescale", "guidance_interval", "guidance_parallel", "guidance_longest", "guidance_momentum"),
}


def parse_labels(text: str | None, num_classes: int) -> list[int]:
    """ "0-2,7" -> [0, 1, 2, 7].

    Raises:
        UserError: not such a list, or a label outside 0..num_classes-1.
    """
    if text is None:
        return list(range(min(num_classes, 10)))
    labels: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or int(last or first) < int(first):
            raise UserError(f"--labels: {text!r} is no list such as 0-9 or 0,3,7-8")
        if int(last or first) >= num_classes:
            wrong = max(int(first), num_classes)
            raise UserError(f"--labels: label {wrong} is out of range; this run has the labels 0-{num_classes - 1}")
        labels += range(int(first), int(last or first) + 1)
    return labels


def parse_interval(text: str) -> tuple[float, float]:
    """ "0.2,0.8" -> (0.2, 0.8).

    Raises:
        UserError: not two numbers.
    """
    try:
        low, high = map(float, text.split(","))
    except ValueError as e:
        raise UserError(f"--guidance_interval: {text!r} is no pair of times such as 0.2,0.8") from e
    return low, high


def check_flags() -> None:
    """Raise a UserError for flags that do not go together."""
    image, edited = IMAGE.value is not None, IMAGE.value is not None or TO_SEED.value is not None
    if not image and (STRENGTH.value, MASK.value, IMAGE_TO.value) != (None, None, None):
        raise UserError("--strength, --mask and --image_to need a picture; name one by --image")
    if sum(flag.value is not None for flag in (STRENGTH, MASK, IMAGE_TO, TO_SEED)) > 1:
        raise UserError("--strength, --mask, --image_to and --to_seed: only one at a time")
    if image and TO_SEED.value is not None:
        raise UserError("--image and --to_seed: only one at a time")
    if IMAGE_TO.value is not None and LABELS.value is not None:
        raise UserError("--labels: a way between two pictures has no label; leave it out")
    if STRIDE.value is not None and (edited or pathlib.Path(OUT.value).suffix != ".gif"):
        raise UserError("--stride: belongs to an --out that ends in .gif, without --image and --to_seed; leave it out")
    if (WEAK_WORKDIR.value, WEAK_STEP.value) != (None, None) and CHOICE["guidance"].value != "autoguidance":
        raise UserError("--weak_workdir and --weak_step belong to --guidance=autoguidance")
    if CHOICE["classifier_scale"].value is not None and CLASSIFIER.value is None:
        raise UserError("--classifier_scale: needs a classifier; name its run by --classifier")


def chosen(task: Diffusion) -> Choice:
    """The run's way to sample, with the flags' changes.

    Raises:
        UserError: a value out of range, or two that do not fit.
    """
    given: dict[str, Any] = {name: flag.value for name, flag in CHOICE.items() if flag.value is not None}
    if "guidance_interval" in given:
        given["guidance_interval"] = parse_interval(given["guidance_interval"])
    for name, options in OPTIONS.items():
        if given.get(name, getattr(task.choice, name)) != getattr(task.choice, name):
            given = {option: getattr(Choice, option) for option in options} | given
    if IMAGE.value is not None and (MASK.value, IMAGE_TO.value) == (None, None):
        given["strength"] = 0.6 if STRENGTH.value is None else STRENGTH.value
    return dataclasses.replace(task.choice, **given)


def restore(
    workdir: pathlib.Path, task: Diffusion | Classifier, step: int | None, flag: str = "", item: str = "ema"
) -> tuple[int, Any]:
    """(step, averaged parameters) of a run, which flags called --`flag`workdir or --`flag`step, or --`flag`, named."""
    like = jax.eval_shape(task.init_params, jax.random.key(0))
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32), like)
    try:
        return Checkpoints(workdir / "checkpoints").restore_ema(like, step, item)
    except UserError as e:
        named = flag if flag == "classifier" else f"{flag}{'workdir' if step is None else 'step'}"
        raise UserError(f"--{named}: {e}") from e


def weaker(workdir: pathlib.Path, task: Diffusion, choice: Choice) -> tuple[Any, Diffusion]:
    """Parameters and task of the weaker network, where autoguidance asks for one; it may be another network."""
    if choice.guidance != "autoguidance" or (WEAK_WORKDIR.value, WEAK_STEP.value) == (None, None):
        return None, task
    place = pathlib.Path(WEAK_WORKDIR.value).expanduser() if WEAK_WORKDIR.value else workdir
    other: Diffusion = beside(workdir, place, "weak_workdir")
    return restore(place, other, WEAK_STEP.value, "weak_")[1], other


def judge(workdir: pathlib.Path) -> tuple[Any, Classifier | None]:
    """Parameters and task of the classifier that guides, if one does."""
    if CLASSIFIER.value is None:
        return None, None
    place = pathlib.Path(CLASSIFIER.value).expanduser()
    other = beside(workdir, place, "classifier")
    if not isinstance(other, Classifier):
        raise UserError(f"--classifier: {str(place)!r} is no classifier's run; train one by configs/adm_classifier.py")
    return restore(place, other, None, "classifier")[1], other


def beside(workdir: pathlib.Path, place: pathlib.Path, flag: str) -> Any:
    """The task of a second run, which must be about the same noise, classes and images.

    Raises:
        UserError: they differ.
    """
    here, there = configuration.load(workdir), configuration.load(place, flag)
    for fields in (_names_and_sizes, _process_as_built):
        ours, theirs = fields(here), fields(there)
        for name in ours:
            if name not in DIFFERING[flag] and ours[name] != theirs[name]:
                raise UserError(
                    f"--{flag}: {str(place)!r} must have the process, classes and image size of --workdir, "
                    f"but config.{name} is {theirs[name]!r} there and {ours[name]!r} here"
                )
    return registry.build(tasks, "config.task", there.task, {"config": there})


def _names_and_sizes(config: Any) -> dict[str, Any]:
    return {"process.name": config.process.name} | {f"data.{name}": config.data[name] for name in SAME_DATA}


def _process_as_built(config: Any) -> dict[str, Any]:
    # A run need not have written down the fields that are as always.
    process: Any = make_process(config)
    return {f"process.{field.name}": getattr(process, field.name) for field in dataclasses.fields(process)}


def conditions(task: Diffusion, choice: Choice) -> Inputs:
    """What a network takes beside labels, from the file of --conditions: its arrays, and null_... for those without.

    Raises:
        UserError: the network takes no such thing, none is given, or it has another shape.
    """
    names = sorted(task.example) if task.takes_conditions else []
    if not names and CONDITIONS.value is None:
        return NOTHING
    if not names or CONDITIONS.value is None:
        what = f"needs {', '.join(names)}; give an .npz file" if names else "takes labels alone; leave it out"
        raise UserError(f"--conditions: this network {what}")
    rows, null = read_conditions(pathlib.Path(CONDITIONS.value).expanduser(), task, choice.asks_null())
    return NOTHING._replace(conditions=rows, null=null)


def picture(flag: str, value: str, config: Any) -> jax.Array:
    """The picture `value` of a flag, (H, W, C) in [-1, 1]: a file, or the number of a training image."""
    data = config.data
    if not value.isdecimal():
        return jnp.asarray(read_image(pathlib.Path(value).expanduser(), data.image_size, data.channels, flag))
    source = open_source(data.name, directory=data.dir, split=data.split, label_key=data.label_key)
    if int(value) >= len(source):
        raise UserError(f"--{flag}: {value} is out of range; the training images are 0-{len(source) - 1}")
    return jnp.asarray(read_image(source[int(value)][0], data.image_size, data.channels, flag))


def mask(value: str, size: int) -> jax.Array:
    """(H, W, 1), 1 where pixels are to be made."""
    if value not in HALVES:
        path = pathlib.Path(value).expanduser()
        if not path.exists():
            raise UserError(f"--mask: no file {value!r}; name one, or one of {', '.join(HALVES)}")
        return jnp.asarray(read_image(path, size, 1, "mask") > 0, jnp.float32)
    rows, columns = np.mgrid[:size, :size] < size // 2
    half = {"left": columns, "right": ~columns, "top": rows, "bottom": ~rows}[value]
    return jnp.asarray(half[..., None], jnp.float32)


def draw(sheet: edits.Sheet, config: Any) -> np.ndarray:
    """What the flags ask for: (rows, columns, H, W, C) uint8, with a stride (states, rows, columns, H, W, C)."""
    if TO_SEED.value is not None:
        return edits.between_noises(sheet, purpose_key(TO_SEED.value, "sample"))
    if IMAGE.value is None:
        return edits.plain(sheet, (STRIDE.value or 1) if OUT.value.endswith(".gif") else 0)
    image = picture("image", IMAGE.value, config)
    if IMAGE_TO.value is not None:
        return edits.between_images(sheet, jnp.stack([image, picture("image_to", IMAGE_TO.value, config)]))
    if MASK.value is not None:
        return edits.fill(sheet, image, mask(MASK.value, config.data.image_size))
    return edits.from_image(sheet, image)


def write(pixels: np.ndarray, labels: list[int], out: pathlib.Path) -> None:
    """Save what `draw` gives in the format that the name of the file says; a .gif shows states, or else columns."""
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".npz":
        names = np.repeat(np.asarray(labels, np.int32), pixels.shape[1])
        np.savez(out, images=pixels.reshape(-1, *pixels.shape[2:]), labels=names)
    elif out.suffix == ".gif":
        frames = pixels if pixels.ndim == 6 else pixels.swapaxes(0, 1)[:, :, None]
        pictures.save_gif([pictures.grid(frame) for frame in frames], out)
    else:
        pictures.save_png(pictures.grid(pixels), out)


def as_flag(error: UserError) -> UserError:
    """The same with the name of the flag, where it is about a field of `Choice`."""
    field, colon, rest = str(error).removeprefix("config.sample.").partition(":")
    if field == "respacing":
        field, rest = "grid", f" a respacing,{rest}"
    return UserError(f"--{field}{colon}{rest}") if field in {*CHOICE, "strength", "image_to"} else error


def main(argv: list[str]) -> None:
    """Restore, draw, write."""
    del argv
    workdir, out = pathlib.Path(WORKDIR.value).expanduser(), pathlib.Path(OUT.value)
    if out.suffix not in FORMATS:
        raise UserError(f"--out: {str(out)!r} must end in one of {', '.join(FORMATS)}")
    check_flags()
    config = configuration.load(workdir)
    task = registry.build(tasks, "config.task", config.task, {"config": config})
    if not isinstance(task, Diffusion):
        raise UserError(f"--workdir: {str(workdir)!r} is the run of a {config.task}, which draws no pictures")
    if config.data.channels not in edits.PICTURES and out.suffix != ".npz":
        raise UserError(
            f"--out: {config.data.channels} channels are no picture; write them to a file that ends in .npz"
        )
    try:
        choice = chosen(task)
        step, params = restore(workdir, task, STEP.value, item=EMA.value)
        key, given = purpose_key(SEED.value, "sample"), conditions(task, choice)
        rows = config.data.num_classes if given is NOTHING else len(jax.tree.leaves(given.conditions)[0])
        labels = parse_labels(LABELS.value, rows)
        (weak, weak_task), (classifier, judging) = weaker(workdir, task, choice), judge(workdir)
        given = given._replace(weak=weak, classifier=classifier)
        log_p = judging.log_p if judging else None
        shape = (PER_CLASS.value, BATCH_SIZE.value)
        sheet = edits.Sheet(task, params, choice, key, labels, *shape, given, weak_task, log_p)
        pixels = draw(sheet, config)
    except UserError as e:
        raise as_flag(e) from e
    write(pixels, [int(task.null)] if IMAGE_TO.value is not None else labels, out)
    logging.info("images of step %d in %s", step, out)


if __name__ == "__main__":
    cli.run(main)
