"""What a deterministic sampler gives beside fresh images: ways between two, images begun from a picture, filled holes.

Each function returns pictures (rows, columns, H, W, C) in [-1, 1]; what was given stands in the first column.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from archirf_jax.errors import UserError
from archirf_jax.samplers.choice import Choice
from archirf_jax.samplers.interpolate import slerp
from archirf_jax.samplers.sample import noise
from archirf_jax.tasks.diffusion import Diffusion, Inputs, class_grid


def between_noises(
    task: Diffusion, params: Any, choice: Choice, keys: tuple[jax.Array, jax.Array], labels: list[int], count: int
) -> jax.Array:
    """One row a label: `count` images on the arc from the noise of the first key to that of the second."""
    first, second = (noise(jnp.broadcast_to(key, (count,)), task.image_shape) for key in keys)
    start = slerp(first, second, _weights(count))
    scale = task.process.sigma(jnp.asarray(choice.make_grid(task.process)[0, 0]))
    sampler = task.sampler(choice)
    rows = [
        sampler(params, jnp.broadcast_to(keys[0], (count,)), jnp.full(count, label), Inputs(start=scale * start))
        for label in labels
    ]
    return jnp.stack(rows)


def between_images(task: Diffusion, params: Any, choice: Choice, images: jax.Array, count: int) -> jax.Array:
    """One row: the two images (2, H, W, C) decoded from their noises, and `count` - 2 on the arc between them.

    Raises:
        UserError: guidance or noise, with which an image has no noise of its own.
    """
    if choice.guidance_scale != 1 or choice.threshold != "none" or choice.solver not in ("euler", "ddim"):
        raise UserError(
            "image_to: an image is encoded by euler or ddim without guidance and threshold; "
            "add --solver=euler --guidance_scale=1 --threshold=none"
        )
    choice = dataclasses.replace(choice, eta=-1.0)
    null = jnp.full(2, task.null)
    ends = task.encoder(choice)(params, images, null)
    start = slerp(jnp.repeat(ends[:1], count, 0), jnp.repeat(ends[1:], count, 0), _weights(count))
    keys = jax.random.split(jax.random.key(0), count)
    drawn = task.sampler(choice)(params, keys, jnp.full(count, task.null), Inputs(start=start))
    return jnp.concatenate([images[:1], drawn, images[1:]])[None]


def from_image(
    task: Diffusion, params: Any, choice: Choice, key: jax.Array, labels: list[int], count: int, image: jax.Array
) -> jax.Array:
    """One row a label: the image (H, W, C), then `count` images begun from it, noised to `choice.strength`.

    Meng et al. 2021, "SDEdit".
    """
    y, keys = class_grid(key, labels, count)
    inputs = Inputs(image=jnp.broadcast_to(image, (len(y), *image.shape)))
    return _beside(image, task.sampler(choice)(params, keys, y, inputs), len(labels))


def fill(
    task: Diffusion,
    params: Any,
    choice: Choice,
    key: jax.Array,
    labels: list[int],
    count: int,
    image: jax.Array,
    mask: jax.Array,
) -> jax.Array:
    """One row a label: the image with its hole grey, then `count` images whose pixels outside the mask are its own."""
    y, keys = class_grid(key, labels, count)
    drawn = task.sampler(choice)(params, keys, y, Inputs(known=image, mask=mask))
    return _beside(jnp.where(mask > 0.5, 0.0, image), drawn, len(labels))


def _weights(count: int) -> jax.Array:
    return jnp.linspace(0.0, 1.0, count)


def _beside(image: jax.Array, drawn: jax.Array, rows: int) -> jax.Array:
    drawn = drawn.reshape(rows, -1, *image.shape)
    return jnp.concatenate([jnp.broadcast_to(image, (rows, 1, *image.shape)), drawn], axis=1)
