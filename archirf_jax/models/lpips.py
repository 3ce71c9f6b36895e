"""LPIPS, a distance between images by the features of a classifier (Zhang et al. 2018, Sec. 3, Eq. 1).

Features after five groups of layers of VGG-16 or AlexNet have unit length at every pixel; their squared differences are
weighed a channel by numbers that were fitted to people's judgements. The network is not trained here.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from archirf_jax.errors import UserError
from archirf_jax.models import initializers, layers
from archirf_jax.models.convolution import Conv

# Of ImageNet's images in [-1, 1]; the backbones were trained on images so centred and scaled.
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
EPS = 1e-10  # added to the length of a pixel's features


class Layer(NamedTuple):
    """A convolution and a ReLU; `place` is its number in torchvision's network."""

    place: int
    width: int
    size: int = 3
    stride: int = 1
    padding: int = 1


class Group(NamedTuple):
    """Layers at one resolution, whose last features are compared; before them the map is halved by the largest.

    Attributes:
        pool: side of the window over which the largest is taken, with stride 2; 0 = none.
        layers: in turn.
    """

    pool: int
    layers: tuple[Layer, ...]


def _vgg(first: int, depth: int, width: int) -> Group:
    return Group(2 if first else 0, tuple(Layer(first + 2 * i, width) for i in range(depth)))


NETS: dict[str, tuple[Group, ...]] = {
    "vgg": (_vgg(0, 2, 64), _vgg(5, 2, 128), _vgg(10, 3, 256), _vgg(17, 3, 512), _vgg(24, 3, 512)),
    "alex": (
        Group(0, (Layer(0, 64, 11, 4, 2),)),
        Group(3, (Layer(3, 192, 5, 1, 2),)),
        Group(3, (Layer(6, 384),)),
        Group(0, (Layer(8, 256),)),
        Group(0, (Layer(10, 256),)),
    ),
}


class LPIPS(nn.Module):
    """Pairs of images -> distances.

    Attributes:
        net: the backbone, a key of NETS.
        dtype: compute dtype of the backbone; features are compared in float32.
    """

    net: str = "vgg"
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        """The backbone's layers by their place, and the weights of each group's channels."""
        layers.check_choices(self, net=NETS)
        groups = NETS[self.net]
        self.convs = {
            f"{layer.place}": Conv(layer.width, layer.size, layer.stride, self.dtype, padding=(layer.padding,) * 2)
            for group in groups
            for layer in group.layers
        }
        ones = initializers.ones
        self.heads = [self.param(f"head_{i}", ones, group.layers[-1].width) for i, group in enumerate(groups)]

    def __call__(self, a: jax.Array, b: jax.Array) -> jax.Array:
        """Images a and b (B, H, W, 3 or 1) in [-1, 1] -> distances (B,) float32, 0 or more."""
        return jnp.sum(self.by_group(a, b), axis=0)

    def by_group(self, a: jax.Array, b: jax.Array) -> jax.Array:
        """The parts (groups, B) of the distances, whose sums they are."""
        pairs = zip(self.heads, self.features(a), self.features(b), strict=True)
        return jnp.stack([_distance(head, *pair) for head, *pair in pairs])

    def features(self, images: jax.Array) -> list[jax.Array]:
        """Images (B, H, W, 3 or 1) in [-1, 1] -> the maps (B, h, w, D) after every group.

        Raises:
            UserError: the images do not have 1 or 3 channels, or are too small.
        """
        if images.shape[-1] not in (1, 3):
            raise UserError("data.channels", images.shape[-1], "must be 3, or 1 for grey images: so LPIPS takes them")
        h = (jnp.broadcast_to(images, (*images.shape[:-1], 3)) - jnp.asarray(SHIFT)) / jnp.asarray(SCALE)
        found = []
        for group in NETS[self.net]:
            h = pooled(h, group.pool) if group.pool else h
            for layer in group.layers:
                self._check_size(h, layer, images)
                h = nn.relu(self.convs[f"{layer.place}"](h))
            found.append(h)
        return found

    def _check_size(self, h: jax.Array, layer: Layer, images: jax.Array) -> None:
        if min(h.shape[1:3]) + 2 * layer.padding < layer.size or not min(h.shape[1:3]):
            height, width = images.shape[1:3]
            raise UserError(
                "data.image_size", min(height, width), f"is too small for LPIPS by the features of {self.net}"
            )


def pooled(x: jax.Array, size: int) -> jax.Array:
    """x (B, H, W, D) -> (B, (H - size) // 2 + 1, ..., D): the largest of windows of this side, with stride 2."""
    height, width = (side - size + 1 for side in x.shape[1:3])
    windows = [x[:, i : i + max(height, 0) : 2, j : j + max(width, 0) : 2] for i in range(size) for j in range(size)]
    return functools.reduce(jnp.maximum, windows)


def _distance(head: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    """(B,): features a and b (B, h, w, D), weighed by what of head (D,) is above 0."""
    difference = jnp.square(_unit(a) - _unit(b))
    return jnp.mean(difference @ jnp.maximum(head, 0), axis=(1, 2))


def _unit(x: jax.Array) -> jax.Array:
    """x (B, h, w, D) over its length at every pixel, float32; 0 with gradient 0 where all of it is 0."""
    x = x.astype(jnp.float32)
    square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return x / (jnp.sqrt(jnp.where(square > 0, square, 1.0)) + EPS)


build = LPIPS
