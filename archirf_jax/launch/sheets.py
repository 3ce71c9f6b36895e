"""Sheets of images, one row a label: fresh ones, between two, starting from an image, with a hole filled.

Every function gives uint8 (rows, columns, H, W, C); an image that was given stands first in each row.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from archirf_jax.conditioners.inpainting import HOLE
from archirf_jax.data.images import read_image, to_uint8
from archirf_jax.data.sources import open_source
from archirf_jax.errors import UserError
from archirf_jax.files import expand
from archirf_jax.launch import latents, sampling, sheet_rows
from archirf_jax.launch.companions import Guides, Refiner
from archirf_jax.launch.runs import Run
from archirf_jax.launch.sampling import Request
from archirf_jax.launch.sheet_rows import Rows
from archirf_jax.samplers import edits
from archirf_jax.samplers.config import SamplerConfig
from archirf_jax.tasks.drawing import class_grid
from archirf_jax.training.state import purpose_key

HALVES = ("left", "right", "top", "bottom")
OF_EACH = ("other_keys", "weights")  # arrays of an edit that hold a row an image


class Sheet(NamedTuple):
    """What a sheet is made of.

    Attributes:
        run: whose network draws.
        config: how.
        rows: conditions and keys of every image.
        columns: images a row.
        guides: runs that guide.
        batch_size: images at a time.
        latents: of fresh images: what is diffused, as it is.
        refiner: a run that draws the last part; None = none does.
    """

    run: Run
    config: SamplerConfig
    rows: Rows
    columns: int
    guides: Guides
    batch_size: int
    latents: bool = False
    refiner: Refiner | None = None


def fresh(sheet: Sheet, stride: int = 0) -> np.ndarray:
    """Fresh images; with a stride (states, rows, columns, H, W, C)."""
    return _drawn(sheet, sheet.rows.keys, Request(sheet.config, stride=stride, latents=sheet.latents))


def between_noises(sheet: Sheet, to_seed: int) -> np.ndarray:
    """Rows from the noise of each label's first image to the noise that another seed gives it."""
    first = sheet.rows.keys[:: sheet.columns]
    _, other = class_grid(purpose_key(to_seed, "sample"), sheet.rows.labels, 1)
    arrays = {"other_keys": jnp.repeat(other, sheet.columns), "weights": _weights(sheet)}
    return _drawn(sheet, jnp.repeat(first, sheet.columns), Request(sheet.config, "between_noises"), **arrays)


def between_images(sheet: Sheet, image: jax.Array, other: jax.Array, seed: int) -> np.ndarray:
    """One row without condition: two images (H, W, C), and between them those on the arc between their noises.

    Raises:
        UserError: guidance or noise, with which an image does not have a noise of its own.
    """
    edits.check_encodes(sheet.config)
    task = sampling.diffusion(sheet.run)
    task.check_null("image_to", "a way without condition")
    null = jax.tree.map(
        lambda leaf: jnp.broadcast_to(leaf, (sheet.columns, *leaf.shape)), task.conditioner.null(sheet.run.frozen)
    )
    row = sheet._replace(rows=Rows([task.num_classes], null, sheet.rows.keys, None))
    keys = jnp.broadcast_to(purpose_key(seed, "sample"), (sheet.columns,))
    both = jnp.stack([_encoded(sheet, each) for each in (image, other)])
    arrays = {"images": both, "weights": jnp.linspace(0.0, 1.0, sheet.columns)}
    drawn = _drawn(row, keys, Request(sheet.config, "between_images"), **arrays)
    return np.concatenate([_column(image, 1), drawn, _column(other, 1)], axis=1)


def from_image(sheet: Sheet, image: jax.Array) -> np.ndarray:
    """The image (H, W, C), then images that start from it, noised to the strength (Meng et al. 2021, "SDEdit")."""
    drawn = _drawn(sheet, sheet.rows.keys, Request(sheet.config, "from_image"), image=_encoded(sheet, image))
    return np.concatenate([_column(image, len(drawn)), drawn], axis=1)


def filled(sheet: Sheet, image: jax.Array, mask: jax.Array) -> np.ndarray:
    """The image (H, W, C) with its hole, where mask (H, W, 1) is 1, grey; then images that equal it elsewhere.

    Of latents those are made whose pixels the mask touches; the others are decoded, and equal the image nearly.
    """
    if sheet_rows.needs_hole(sheet.run):  # the rows hold both, and the network fills by itself
        drawn = _drawn(sheet, sheet.rows.keys, Request(sheet.config))
        return np.concatenate([_column(jnp.where(mask > 0.5, 0.0, image), len(drawn)), drawn], axis=1)
    encoded = _encoded(sheet, image)
    arrays = {"image": encoded, "mask": _coarser(mask, encoded.shape)}
    drawn = _drawn(sheet, sheet.rows.keys, Request(sheet.config, "fill"), **arrays)
    return np.concatenate([_column(jnp.where(mask > 0.5, 0.0, image), len(drawn)), drawn], axis=1)


def to_fill(run: Run, image_name: str | None, mask_name: str | None) -> dict[str, jax.Array]:
    """Fields (1, ...) of an image and its hole for a run whose network reads them; {} for others or without both."""
    if image_name is None or mask_name is None or not sheet_rows.needs_hole(run):
        return {}
    found = image(run, "image", image_name)
    return {"image": found[None], HOLE: mask(mask_name, found.shape[0])[None]}


def reconstructed(run: Run, image: jax.Array) -> np.ndarray:
    """One row: an image (H, W, C), and what the run's autoencoder makes of it.

    Raises:
        UserError: the task does not reconstruct images.
    """
    task: Any = run.task
    if not hasattr(task, "reconstruct"):
        what = f"is the run of the task {run.config.task}, which neither draws nor reconstructs images"
        raise UserError(run.field, str(run.directory), what)
    made = jax.jit(task.reconstruct)(run.params, run.frozen, image[None])
    return np.concatenate([_column(image, 1), to_uint8(np.asarray(made))[None]], axis=1)


def image(run: Run, field: str, value: str) -> jax.Array:
    """The image that a user named, (H, W, C) in [-1, 1]: a file, or the number of a training image.

    Raises:
        UserError: about `field`: no such file or number, or not readable.
    """
    data = run.config.data
    how: Any = data.image_size, data.channels, field, data.get("value_range")
    if not value.isdecimal():
        return jnp.asarray(read_image(expand(value, field), *how))
    data = latents.images_of(data)
    source = open_source(data.name, directory=data.dir, split=data.split, label_key=data.label_key)
    if int(value) >= len(source):
        raise UserError(field, int(value), f"is out of range; the training images are 0-{len(source) - 1}")
    return jnp.asarray(read_image(source[int(value)]["image"], *how))


def mask(value: str, size: int) -> jax.Array:
    """(H, W, 1), 1 where pixels are to be made: white parts of an image file, or one of HALVES.

    Raises:
        UserError: no such file.
    """
    if value not in HALVES:
        path = expand(value, "mask")
        if not path.exists():
            raise UserError("mask", value, f"is not a file; name one, or one of {', '.join(HALVES)}")
        return jnp.asarray(read_image(path, size, 1, "mask") > 0, jnp.float32)
    rows, columns = np.mgrid[:size, :size] < size // 2
    half = {"left": columns, "right": ~columns, "top": rows, "bottom": ~rows}[value]
    return jnp.asarray(half[..., None], jnp.float32)


def fresh_batches(sheet: Sheet) -> Iterator[np.ndarray]:
    """Fresh images (n, H, W, C), row after row, as they are drawn."""
    if len({*sheet.rows.scales}) > 1:
        return iter(fresh(sheet))
    return _batches(sheet, sheet.rows.keys, Request(sheet.config))


def _drawn(sheet: Sheet, keys: jax.Array, request: Request, **arrays: Any) -> np.ndarray:
    """(rows, columns, H, W, C), with a stride (states, rows, columns, H, W, C)."""
    scales = sheet.rows.scales
    if not any(scale is not None for scale in scales):
        whole = np.concatenate(list(_batches(sheet, keys, request, **arrays)), axis=-4)
        return whole.reshape(*whole.shape[:-4], -1, sheet.columns, *whole.shape[-3:])
    parts, order = [], []
    for scale in dict.fromkeys(scales):  # a program a scale
        rows = [i for i, each in enumerate(scales) if each == scale]
        images = np.concatenate([np.arange(i * sheet.columns, (i + 1) * sheet.columns) for i in rows])
        mine = {name: array[images] if name in OF_EACH else array for name, array in arrays.items()}
        part = sheet._replace(rows=sheet.rows._replace(batch=_chosen(sheet.rows.batch, images), scales=()))
        if part.refiner is not None:
            part = part._replace(refiner=part.refiner._replace(batch=_chosen(part.refiner.batch, images)))
        config = sheet.config if scale is None else sheet.config.replace(guidance_scale=scale)
        parts.append(_drawn(part, keys[images], dataclasses.replace(request, config=config), **mine))
        order += rows
    return np.take(np.concatenate(parts, axis=-5), np.argsort(order), axis=-5)


def _chosen(batch: Any, images: np.ndarray) -> Any:
    return jax.tree.map(lambda leaf: leaf[images], batch)


def _batches(sheet: Sheet, keys: jax.Array, request: Request, **arrays: Any) -> Iterator[np.ndarray]:
    options: dict[str, Any] = dict(arrays=arrays, guides=sheet.guides, batch_size=sheet.batch_size)
    return sampling.refined_images(sheet.run, sheet.rows.batch, keys, request, sheet.refiner, **options)


def _weights(sheet: Sheet) -> jax.Array:
    return jnp.tile(jnp.linspace(0.0, 1.0, sheet.columns), len(sheet.rows.labels))


def _encoded(sheet: Sheet, image: jax.Array) -> jax.Array:
    """What is diffused of an image (H, W, C)."""
    keys = jax.random.split(jax.random.key(0), 1)
    task = sampling.diffusion(sheet.run)
    return task.first_stage.encode(sheet.run.frozen, {"image": image[None]}, keys)[0]


def _coarser(mask: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """A mask (H, W, 1) for what is diffused, of `shape` (h, w, D): 1 where it is anywhere in the block of pixels."""
    rows, columns = mask.shape[0] // shape[0], mask.shape[1] // shape[1]
    return jnp.max(mask.reshape(shape[0], rows, shape[1], columns, 1), axis=(1, 3))


def _column(image: jax.Array, rows: int) -> np.ndarray:
    return np.broadcast_to(to_uint8(np.asarray(image)), (rows, 1, *image.shape))
