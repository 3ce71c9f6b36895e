"""python -m archirf_jax.sample --workdir=runs/dit_rf --labels=0-9 --per_class=8 --out=samples.png

Draw images from a run's EMA weights: a grid (.png), an animation (.gif), or arrays (.npz). With --to_seed, --image,
--image_to and --mask: ways between two noises or two pictures, pictures begun from another, filled holes.
"""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags, logging

from archirf_jax.data.images import read_image
from archirf_jax.data.sources import open_source
from archirf_jax.errors import UserError
from archirf_jax.launch import cli
from archirf_jax.launch.sampling import Flags
from archirf_jax.tasks import edits
from archirf_jax.tasks.diffusion import Diffusion
from archirf_jax.training.state import purpose_key
from archirf_jax.visuals import pictures

RUN = Flags()
LABELS = flags.DEFINE_string("labels", None, "classes to draw, such as 0-9 or 0,3,7-8; default: all, at most ten")
PER_CLASS = flags.DEFINE_integer("per_class", 8, "images a class", lower_bound=1, upper_bound=1_000_000)
OUT = flags.DEFINE_string("out", "samples.png", "file to write: .png, .gif or .npz")
STRIDE = flags.DEFINE_integer("stride", None, "a .gif of fresh images shows every so many steps", lower_bound=1)
TO_SEED = flags.DEFINE_integer(
    "to_seed", None, "go from the noise of --seed to that of this one", lower_bound=0, upper_bound=2**31 - 1
)
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


def changes() -> dict[str, float]:
    """What editing a picture changes of how the run is sampled."""
    if IMAGE.value is None or (MASK.value, IMAGE_TO.value) != (None, None):
        return {}
    return {"strength": 0.6 if STRENGTH.value is None else STRENGTH.value}


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


def main(argv: list[str]) -> None:
    """Restore, draw, write."""
    del argv
    out = pathlib.Path(OUT.value)
    if out.suffix not in FORMATS:
        raise UserError(f"--out: {str(out)!r} must end in one of {', '.join(FORMATS)}")
    check_flags()
    RUN.check()
    config, task = RUN.task()
    if not isinstance(task, Diffusion):
        raise UserError(f"--workdir: {str(RUN.workdir)!r} is the run of a {config.task}, which draws no pictures")
    if config.data.channels not in edits.PICTURES and out.suffix != ".npz":
        raise UserError(
            f"--out: {config.data.channels} channels are no picture; write them to a file that ends in .npz"
        )
    try:
        run = RUN.open(task, **changes())
        tables = jax.tree.leaves(run.inputs.conditions)
        labels = parse_labels(LABELS.value, len(tables[0]) if tables else config.data.num_classes)
        drawn = (purpose_key(RUN.seed.value, "sample"), labels, PER_CLASS.value, RUN.batch_size.value)
        sheet = edits.Sheet(task, run.params, run.choice, *drawn, run.inputs, run.weaker, run.log_p)
        pixels = draw(sheet, config)
    except UserError as e:
        raise RUN.as_flag(e) from e
    write(pixels, [int(task.null)] if IMAGE_TO.value is not None else labels, out)
    logging.info("images of step %d in %s", run.step, out)


if __name__ == "__main__":
    cli.run(main)
