"""Edits: functions of a denoiser and arrays, each for one batch and within `jax.jit`; fresh samples are `sample`'s.

All of them take one key an example, its condition, and the grid and solver of `samplers.sample.sample`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from archirf_jax.contracts import Condition, Denoiser, Solver
from archirf_jax.errors import UserError
from archirf_jax.samplers.config import SamplerConfig
from archirf_jax.samplers.denoisers import Inpaint
from archirf_jax.samplers.encode import encode
from archirf_jax.samplers.sample import noise, sample


def between_noises(
    keys: jax.Array,
    other_keys: jax.Array,
    weights: jax.Array,
    denoise: Denoiser,
    condition: Condition,
    shape: tuple[int, ...],
    *,
    grid: np.ndarray,
    solver: Solver,
    hoist: bool = True,
) -> jax.Array:
    """(B, *shape) from the arc between two noises, at weights (B,): 0 = that of `keys`, 1 = that of `other_keys`."""
    sigma = denoise.process.sigma(jnp.asarray(grid[0, 0]))
    start = slerp(sigma * noise(keys, shape), sigma * noise(other_keys, shape), weights)
    return sample(keys, denoise, condition, shape, grid=grid, solver=solver, start=start, hoist=hoist)


def between_images(
    keys: jax.Array,
    images: jax.Array,
    weights: jax.Array,
    denoise: Denoiser,
    condition: Condition,
    *,
    grid: np.ndarray,
    solver: Solver,
    hoist: bool = True,
) -> jax.Array:
    """(B, ...) from the arc between the noises that two images (2, ...) come from, at weights (B,).

    The two are encoded with the first row of the condition; see `check_encodes` for what can be encoded.
    """
    both = jax.tree.map(lambda leaf: jnp.repeat(leaf[:1], 2, axis=0), condition)
    ends = encode(denoise, images, both, grid=grid, hoist=hoist)
    first, second = (jnp.broadcast_to(end, (len(keys), *end.shape)) for end in ends)
    start = slerp(first, second, weights)
    return sample(keys, denoise, condition, images.shape[1:], grid=grid, solver=solver, start=start, hoist=hoist)


def from_image(
    keys: jax.Array,
    image: jax.Array,
    denoise: Denoiser,
    condition: Condition,
    shape: tuple[int, ...],
    *,
    grid: np.ndarray,
    solver: Solver,
    stride: int = 0,
    hoist: bool = True,
) -> jax.Array:
    """(B, *shape) that start from an image (*shape) or (B, *shape), noised to the grid's first time.

    Meng et al. 2021, "SDEdit"; `SamplerConfig.strength` is that time.
    """
    start = denoise.process.noised(image, noise(keys, shape), jnp.asarray(grid[0, 0]))
    how: dict[str, Any] = dict(grid=grid, solver=solver, stride=stride, hoist=hoist)
    return sample(keys, denoise, condition, shape, start=start, **how)


def fill(
    keys: jax.Array,
    image: jax.Array,
    mask: jax.Array,
    denoise: Denoiser,
    condition: Condition,
    shape: tuple[int, ...],
    **how: Any,
) -> jax.Array:
    """(B, *shape) that equal the image where the mask is 0; see `Inpaint`.

    Args:
        keys, denoise, condition, shape: as for `sample`.
        image: (*shape) or (B, *shape).
        mask: broadcasts against the image; 1 where pixels are generated.
        how: grid, solver and what else `sample` takes.
    """
    return sample(keys, Inpaint(denoise, image, mask), condition, shape, **how)


def check_encodes(config: SamplerConfig) -> None:
    """Raise a UserError unless images can be encoded so: by Euler's steps, without noise, guidance or threshold."""
    if config.solver.name not in ("euler", "ddim"):
        raise UserError("sample.solver.name", config.solver.name, "does not encode images; use euler or ddim")
    if config.solver.get("eta"):
        raise UserError("sample.solver.eta", config.solver.get("eta"), "adds noise; images are encoded with 0")
    if config.guidance_scale != 1:
        raise UserError("sample.guidance.scale", config.guidance_scale, "must be 1 where images are encoded")
    if config.threshold is not None:
        raise UserError("sample.threshold", config.threshold, "must be None where images are encoded")


def slerp(first: jax.Array, second: jax.Array, weight: jax.Array) -> jax.Array:
    """Spherical interpolation of each example (Shoemake 1985): on the way the length stays that of noise.

    Args:
        first: (B, ...).
        second: the same shape.
        weight: (B,), 0 is `first`, 1 is `second`.
    """
    axes = tuple(range(1, first.ndim))
    weight = weight.reshape(-1, *[1] * len(axes))
    lengths = jnp.sqrt(jnp.sum(first**2, axes, keepdims=True) * jnp.sum(second**2, axes, keepdims=True))
    cosine = jnp.sum(first * second, axes, keepdims=True) / jnp.maximum(lengths, jnp.finfo(first.dtype).tiny)
    angle = jnp.arccos(jnp.clip(cosine, -1, 1))
    parallel = jnp.sin(angle) < 1e-4  # there the formula is 0 / 0, and its limit is linear interpolation
    sine = jnp.where(parallel, 1, jnp.sin(angle))
    return jnp.where(
        parallel,
        (1 - weight) * first + weight * second,
        (jnp.sin((1 - weight) * angle) * first + jnp.sin(weight * angle) * second) / sine,
    )
