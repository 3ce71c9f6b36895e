"""A low-resolution image with noise-conditioning augmentation (Ho et al. 2021, "Cascaded Diffusion Models", Sec. 4)."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from archirf_jax.contracts import Batch, Condition, Frozen


@dataclasses.dataclass(frozen=True)
class NoisyLowRes:
    """Attributes:
    process: of the noise.
    size: pixels a side.
    """

    process: Any
    size: int

    def __call__(self, frozen: Frozen, batch: Batch, keys: jax.Array) -> Condition:
        noise_keys, level_keys = jax.numpy.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
        low = batch["low_res"] if "low_res" in batch else self._resized(batch["image"])
        level = batch["noise_level"] if "noise_level" in batch else jax.vmap(jax.random.uniform)(level_keys)
        noise = jax.vmap(lambda key: jax.random.normal(key, low.shape[1:]))(noise_keys)
        return {"low_res": self.process.noised(low, noise, level), "noise_level": level}

    def null(self, frozen: Frozen) -> Condition:
        return {}

    def _resized(self, images: jax.Array) -> jax.Array:
        return jax.image.resize(images, (len(images), self.size, self.size, images.shape[-1]), "linear", antialias=True)


def build(process: Any, size: int = 4) -> NoisyLowRes:
    return NoisyLowRes(process, size)
