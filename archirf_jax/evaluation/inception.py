"""Inception-v3 as the Fréchet inception distance is computed with (Szegedy et al. 2016; Heusel et al. 2017).

The published weights are of 2015-12-05 and differ from the paper's network in how they pool: averages leave the padding
out, and the last mixed layer takes the largest instead. Parameters lie under their published names.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

SIZE = 299  # pixels a side
CLASSES = 1008
EPS = 1e-3  # added to the variances


@dataclasses.dataclass(frozen=True)
class Conv:
    """A convolution of `features` channels, normalised by stored moments, and a ReLU."""

    name: str
    features: int
    height: int = 1
    width: int = 1
    stride: int = 1
    padding: str = "SAME"


def _square(name: str, features: int, size: int) -> Conv:
    return Conv(name, features, size, size)


def _halving(name: str, features: int) -> Conv:
    return Conv(name, features, 3, 3, 2, "VALID")


AVERAGE, LARGEST, HALVED = "average", "largest", "halved"
Branch = tuple[Conv | str | tuple[Conv, Conv], ...]  # in turn; a pair side by side


def _small(pool: int) -> tuple[Branch, ...]:
    return (
        (Conv("branch1x1", 64),),
        (Conv("branch5x5_1", 48), _square("branch5x5_2", 64, 5)),
        (Conv("branch3x3dbl_1", 64), _square("branch3x3dbl_2", 96, 3), _square("branch3x3dbl_3", 96, 3)),
        (AVERAGE, Conv("branch_pool", pool)),
    )


def _long(width: int) -> tuple[Branch, ...]:
    return (
        (Conv("branch1x1", 192),),
        (Conv("branch7x7_1", width), Conv("branch7x7_2", width, 1, 7), Conv("branch7x7_3", 192, 7, 1)),
        (
            Conv("branch7x7dbl_1", width),
            Conv("branch7x7dbl_2", width, 7, 1),
            Conv("branch7x7dbl_3", width, 1, 7),
            Conv("branch7x7dbl_4", width, 7, 1),
            Conv("branch7x7dbl_5", 192, 1, 7),
        ),
        (AVERAGE, Conv("branch_pool", 192)),
    )


def _wide(pool: str) -> tuple[Branch, ...]:
    return (
        (Conv("branch1x1", 320),),
        (Conv("branch3x3_1", 384), (Conv("branch3x3_2a", 384, 1, 3), Conv("branch3x3_2b", 384, 3, 1))),
        (
            Conv("branch3x3dbl_1", 448),
            _square("branch3x3dbl_2", 384, 3),
            (Conv("branch3x3dbl_3a", 384, 1, 3), Conv("branch3x3dbl_3b", 384, 3, 1)),
        ),
        (pool, Conv("branch_pool", 192)),
    )


STEM = (
    _halving("Conv2d_1a_3x3", 32),
    Conv("Conv2d_2a_3x3", 32, 3, 3, padding="VALID"),
    _square("Conv2d_2b_3x3", 64, 3),
)
STEM_2 = (Conv("Conv2d_3b_1x1", 80), Conv("Conv2d_4a_3x3", 192, 3, 3, padding="VALID"))
MIXED: dict[str, tuple[Branch, ...]] = {
    "Mixed_5b": _small(32),
    "Mixed_5c": _small(64),
    "Mixed_5d": _small(64),
    "Mixed_6a": (
        (_halving("branch3x3", 384),),
        (Conv("branch3x3dbl_1", 64), _square("branch3x3dbl_2", 96, 3), _halving("branch3x3dbl_3", 96)),
        (HALVED,),
    ),
    "Mixed_6b": _long(128),
    "Mixed_6c": _long(160),
    "Mixed_6d": _long(160),
    "Mixed_6e": _long(192),
    "Mixed_7a": (
        (Conv("branch3x3_1", 192), _halving("branch3x3_2", 320)),
        (
            Conv("branch7x7x3_1", 192),
            Conv("branch7x7x3_2", 192, 1, 7),
            Conv("branch7x7x3_3", 192, 7, 1),
            _halving("branch7x7x3_4", 192),
        ),
        (HALVED,),
    ),
    "Mixed_7b": _wide(AVERAGE),
    "Mixed_7c": _wide(LARGEST),
}


class Activations(NamedTuple):
    """The activations of the network for images; float32.

    Attributes:
        blocks: means over positions after its first three parts, (B, 64), (B, 192) and (B, 768).
        pool3: (B, 2048), the features of the distance.
        logits: (B, 1008).
        unbiased: logits without their bias, (B, 1008), which the published inception score is computed from.
    """

    blocks: tuple[jax.Array, jax.Array, jax.Array]
    pool3: jax.Array
    logits: jax.Array
    unbiased: jax.Array


class Inception(nn.Module):
    """Images (B, H, W, 3) in [0, 255] of any size -> `Activations`."""

    @nn.compact
    def __call__(self, images: jax.Array) -> Activations:
        """Resized bilinearly from pixel centres without antialiasing, as the common implementation does."""
        shape = (len(images), SIZE, SIZE, 3)
        x = jax.image.resize(images.astype(jnp.float32), shape, "linear", antialias=False) / 127.5 - 1
        blocks = []
        for part in (STEM, STEM_2):
            for conv in part:
                x = _apply(conv, x)
            x = _apply(HALVED, x)
            blocks.append(jnp.mean(x, axis=(1, 2)))
        for name, branches in MIXED.items():
            x = Mixed(branches, name=name)(x)
            if name == "Mixed_6e":
                blocks.append(jnp.mean(x, axis=(1, 2)))
        pool3 = jnp.mean(x, axis=(1, 2))
        unbiased = nn.Dense(CLASSES, use_bias=False, name="fc")(pool3)
        bias = self.param("fc_bias", nn.initializers.zeros, (CLASSES,))
        return Activations((blocks[0], blocks[1], blocks[2]), pool3, unbiased + bias, unbiased)


class Mixed(nn.Module):
    """Branches side by side, (B, h, w, C) -> (B, h', w', C')."""

    branches: tuple[Branch, ...]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Their channels, one branch after the other."""
        return jnp.concatenate([self._branch(branch, x) for branch in self.branches], axis=-1)

    def _branch(self, branch: Branch, x: jax.Array) -> jax.Array:
        for part in branch:
            pair = part if isinstance(part, tuple) else (part,)
            x = jnp.concatenate([_apply(each, x) for each in pair], axis=-1)
        return x


class Normalised(nn.Module):
    """A `Conv`: the convolution, (x - mean) / sqrt(variance + eps) * scale + bias, and what is above 0 of it."""

    conv: Conv

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, h, w, C) -> (B, h', w', features)."""
        conv, shape = self.conv, (self.conv.features,)
        size, strides = (conv.height, conv.width), (conv.stride, conv.stride)
        x = nn.Conv(conv.features, size, strides, padding=conv.padding, use_bias=False, name="conv")(x)
        ones, zeros = nn.initializers.ones, nn.initializers.zeros
        scale, bias = self.param("scale", ones, shape), self.param("bias", zeros, shape)
        mean, variance = self.param("mean", zeros, shape), self.param("variance", ones, shape)
        return nn.relu((x - mean) * (scale / jnp.sqrt(variance + EPS)) + bias)


def _apply(part: Conv | str, x: jax.Array) -> jax.Array:
    if isinstance(part, Conv):
        return Normalised(part, name=part.name)(x)
    if part == HALVED:
        return nn.max_pool(x, (3, 3), (2, 2))
    if part == LARGEST:
        return nn.max_pool(x, (3, 3), padding="SAME")
    return nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)
