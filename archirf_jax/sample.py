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
from archirf_jax.tasks.diffusion import Diffusion, Inputs, class_grid
from archirf_jax.training.checkpoints import Checkpoints
from archirf_jax.training.state import purpose_key
from archirf_jax.visuals import pictures

WORKDIR = flags.DEFINE_string("workdir", None, "run directory", required=True)
LABELS = flags.DEFINE_string("labels", None, "classes to draw, such as 0-9 or 0,3,7-8; default: all, at most ten")
PER_CLASS = flags.DEFINE_integer("per_class", 8, "images a class", lower_bound=1, upper_bound=1_000_000)
SEED = flags.DEFINE_integer("seed", 0, "of the noise", lower_bound=0, upper_bound=2**31 - 1)
STEP = flags.DEFINE_integer("step", None, "checkpoint to use; default: the newest")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 128, "images drawn at a time", lower_bound=1)
OUT = flags.DEFINE_string("out", "samples.png", "file to write: .png, .gif or .npz")
STRIDE = flags.DEFINE_integer("stride", 1, "a .gif shows every so many steps", lower_bound=1)

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
    "threshold": flags.DEFINE_string("threshold", None, "none, static or dynamic"),
}
WEAK_WORKDIR = flags.DEFINE_string("weak_workdir", None, "autoguidance: run of the weaker network; default: this run")
WEAK_STEP = flags.DEFINE_integer("weak_step", None, "autoguidance: its checkpoint")

TO_SEED = flags.DEFINE_integer("to_seed", None, "go from the noise of --seed to that of this one", lower_bound=0)
IMAGE = flags.DEFINE_string("image", None, "begin from this picture: a file, or the number of a training image")
IMAGE_TO = flags.DEFINE_string("image_to", None, "go from --image to this picture")
STRENGTH = flags.DEFINE_float("strength", None, "how much of --image becomes noise, above 0 to 1; default 0.6")
MASK = flags.DEFINE_string("mask", None, "fill the white part of this picture, or left, right, top, bottom of --image")

FORMATS = (".png", ".gif", ".npz")
HALVES = ("left", "right", "top", "bottom")


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


def chosen(task: Diffusion) -> Choice:
    """The run's way to sample, with the flags' changes.

    Raises:
        UserError: a value out of range, or flags that do not go together.
    """
    given: dict[str, Any] = {name: flag.value for name, flag in CHOICE.items() if flag.value is not None}
    if "guidance_interval" in given:
        given["guidance_interval"] = parse_interval(given["guidance_interval"])
    # Options of the run's own solver, grid or guidance do not follow to another one.
    for name, options in (("solver", ("eta", "churn")), ("grid", ("shift",))):
        if name in given:
            given = {option: Choice.__dataclass_fields__[option].default for option in options} | given
    if IMAGE.value is None and (STRENGTH.value, MASK.value, IMAGE_TO.value) != (None, None, None):
        raise UserError("--strength, --mask and --image_to need a picture; name one by --image")
    if sum(flag.value is not None for flag in (STRENGTH, MASK, IMAGE_TO, TO_SEED)) > 1:
        raise UserError("--strength, --mask, --image_to and --to_seed: only one at a time")
    if IMAGE.value is not None and TO_SEED.value is not None:
        raise UserError("--image and --to_seed: only one at a time")
    if IMAGE_TO.value is not None and LABELS.value is not None:
        raise UserError("--labels: a way between two pictures has no label; leave it out")
    if IMAGE.value is not None and (MASK.value, IMAGE_TO.value) == (None, None):
        given["strength"] = 0.6 if STRENGTH.value is None else STRENGTH.value
    if (WEAK_WORKDIR.value, WEAK_STEP.value) != (None, None) and given.get("guidance") != "autoguidance":
        raise UserError("--weak_workdir and --weak_step belong to --guidance=autoguidance")
    return dataclasses.replace(task.choice, **given)


def restore(workdir: pathlib.Path, task: Diffusion, step: int | None) -> tuple[int, Any]:
    """(step, EMA parameters) of a run."""
    like = jax.eval_shape(task.init_params, jax.random.key(0))
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32), like)
    return Checkpoints(workdir / "checkpoints").restore_ema(like, step)


def weak_params(workdir: pathlib.Path, task: Diffusion, choice: Choice) -> Any:
    """The parameters of the weaker network, where autoguidance asks for one; it has the same shape."""
    if choice.guidance != "autoguidance" or (WEAK_WORKDIR.value, WEAK_STEP.value) == (None, None):
        return None
    place = pathlib.Path(WEAK_WORKDIR.value).expanduser() if WEAK_WORKDIR.value else workdir
    if WEAK_WORKDIR.value and configuration.load(place).model != configuration.load(workdir).model:
        raise UserError(f"--weak_workdir: the network of {str(place)!r} has another shape than that of --workdir")
    return restore(place, task, WEAK_STEP.value)[1]


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


def draw(task: Diffusion, params: Any, choice: Choice, labels: list[int], weak: Any, stride: int) -> np.ndarray:
    """Images (N, H, W, C), or with a stride the states before them too, as uint8; in batches of one size."""
    sampler = task.sampler(choice, stride)
    y, keys = class_grid(purpose_key(SEED.value, "sample"), labels, PER_CLASS.value)
    count, size = len(y), min(BATCH_SIZE.value, len(y))
    padded = jnp.arange(-(-count // size) * size) % count
    batches = [padded[i : i + size] for i in range(0, len(padded), size)]
    drawn = [pictures.to_uint8(np.asarray(sampler(params, keys[part], y[part], Inputs(weak=weak)))) for part in batches]
    return np.concatenate(drawn, axis=-4)[..., :count, :, :, :]


def edit(task: Diffusion, params: Any, choice: Choice, labels: list[int], config: Any) -> np.ndarray:
    """(rows, columns, H, W, C) uint8 of what --to_seed or --image ask for."""
    key, count = purpose_key(SEED.value, "sample"), PER_CLASS.value
    image = None if IMAGE.value is None else picture("image", IMAGE.value, config)
    if image is None:
        ends = (key, purpose_key(TO_SEED.value or 0, "sample"))
        rows = edits.between_noises(task, params, choice, ends, labels, count)
    elif IMAGE_TO.value is not None:
        both = jnp.stack([image, picture("image_to", IMAGE_TO.value, config)])
        rows = edits.between_images(task, params, choice, both, count)
    elif MASK.value is not None:
        rows = edits.fill(task, params, choice, key, labels, count, image, mask(MASK.value, config.data.image_size))
    else:
        rows = edits.from_image(task, params, choice, key, labels, count, image)
    return pictures.to_uint8(np.asarray(rows))


def main(argv: list[str]) -> None:
    """Restore, draw, write."""
    del argv
    workdir, out = pathlib.Path(WORKDIR.value).expanduser(), pathlib.Path(OUT.value)
    if out.suffix not in FORMATS:
        raise UserError(f"--out: {str(out)!r} must end in one of {', '.join(FORMATS)}")
    config = configuration.load(workdir)
    labels = parse_labels(LABELS.value, config.data.num_classes)
    task = registry.build(tasks, "config.task", config.task, {"config": config})
    choice = chosen(task)
    step, params = restore(workdir, task, STEP.value)
    weak = weak_params(workdir, task, choice)

    if IMAGE.value is not None or TO_SEED.value is not None:
        rows = edit(task, params, choice, labels, config)
        frames = list(rows.swapaxes(0, 1)[:, :, None])
    else:
        stride = STRIDE.value if out.suffix == ".gif" else 0
        images = draw(task, params, choice, labels, weak, stride)
        rows = images.reshape(*images.shape[:-4], len(labels), PER_CLASS.value, *task.image_shape)
        frames = list(rows)
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".npz":
        per_row = rows.shape[-4]
        np.savez(
            out, images=rows.reshape(-1, *task.image_shape), labels=np.repeat(np.asarray(labels, np.int32), per_row)
        )
    elif out.suffix == ".gif":
        pictures.save_gif([pictures.grid(frame) for frame in frames], out)
    else:
        pictures.save_png(pictures.grid(rows), out)
    logging.info("images of step %d in %s", step, out)


if __name__ == "__main__":
    cli.run(main)
