"""python -m archirf_jax.sample --workdir=runs/dit_rf --labels=0-9 --per_class=8 --out=samples.png

Draw images from a run's EMA weights: a grid (.png), an animation of the denoising (.gif), or arrays (.npz).
"""

from __future__ import annotations

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags, logging

from archirf_jax import registry, tasks
from archirf_jax.errors import UserError
from archirf_jax.launch import cli
from archirf_jax.launch import config as configuration
from archirf_jax.tasks.diffusion import Diffusion, class_grid
from archirf_jax.training.checkpoints import Checkpoints
from archirf_jax.training.state import purpose_key
from archirf_jax.visuals import pictures

WORKDIR = flags.DEFINE_string("workdir", None, "run directory", required=True)
LABELS = flags.DEFINE_string("labels", None, "classes to draw, such as 0-9 or 0,3,7-8; default: all, at most ten")
PER_CLASS = flags.DEFINE_integer("per_class", 8, "images a class", lower_bound=1, upper_bound=1_000_000)
STEPS = flags.DEFINE_integer(
    "steps", None, "solver steps; default: the run's sample.steps", lower_bound=1, upper_bound=1_000_000
)
SOLVER = flags.DEFINE_string("solver", None, "default: the run's sample.solver")
SCALE = flags.DEFINE_float("guidance_scale", None, "1 is off; default: the run's sample.guidance_scale", lower_bound=0)
SEED = flags.DEFINE_integer("seed", 0, "of the noise", lower_bound=0, upper_bound=2**31 - 1)
STEP = flags.DEFINE_integer("step", None, "checkpoint to use; default: the newest")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 128, "images drawn at a time", lower_bound=1)
OUT = flags.DEFINE_string("out", "samples.png", "file to write: .png, .gif or .npz")

FORMATS = (".png", ".gif", ".npz")


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


def draw(task: Diffusion, params: object, labels: list[int], trajectory: bool) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, H, W, C), or (steps + 1, N, H, W, C), as uint8, and labels (N,) int32; in batches of one size."""
    sampler = task.sampler(solver=SOLVER.value, steps=STEPS.value, guidance_scale=SCALE.value, trajectory=trajectory)
    y, keys = class_grid(purpose_key(SEED.value, "sample"), labels, PER_CLASS.value)
    count, size = len(y), min(BATCH_SIZE.value, len(y))
    padded = jnp.arange(-(-count // size) * size) % count
    drawn = [
        pictures.to_uint8(np.asarray(sampler(params, keys[padded[i : i + size]], y[padded[i : i + size]])))
        for i in range(0, len(padded), size)
    ]
    return np.concatenate(drawn, axis=-4)[..., :count, :, :, :], np.asarray(y)


def main(argv: list[str]) -> None:
    """Restore, draw, write."""
    del argv
    workdir, out = pathlib.Path(WORKDIR.value).expanduser(), pathlib.Path(OUT.value)
    if out.suffix not in FORMATS:
        raise UserError(f"--out: {str(out)!r} must end in one of {', '.join(FORMATS)}")
    config = configuration.load(workdir)
    labels = parse_labels(LABELS.value, config.data.num_classes)
    task = registry.build(tasks, "config.task", config.task, {"config": config})
    like = jax.eval_shape(lambda: task.init(jax.random.key(0)).ema)
    step, params = Checkpoints(workdir / "checkpoints").restore_ema(like, STEP.value)
    images, y = draw(task, params, labels, trajectory=out.suffix == ".gif")

    rows = images.reshape(*images.shape[:-4], len(labels), PER_CLASS.value, *task.image_shape)
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".npz":
        np.savez(out, images=images, labels=y)
    elif out.suffix == ".gif":
        pictures.save_gif([pictures.grid(frame) for frame in rows], out)
    else:
        pictures.save_png(pictures.grid(rows), out)
    logging.info("%d images of step %d in %s", len(y), step, out)


if __name__ == "__main__":
    cli.run(main)
