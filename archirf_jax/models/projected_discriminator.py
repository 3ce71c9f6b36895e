"""A discriminator of what a frozen network sees of images (Sauer et al. 2021, Projected GANs, Sec. 3.1 to 3.3).

Maps of features at several scales are mixed by random convolutions that stay as they are, and a small convolutional
head a scale gives logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from archirf_jax.errors import UserError
from archirf_jax.models import initializers, layers
from archirf_jax.models.convolution import convolve

SLOPE = 0.2  # of the leaky ReLU below 0
POWERS = 8  # iterations of the power method
SMALLEST = 1e-12  # length of a vector that is brought to length 1


class ProjectedDiscriminator(nn.Module):
    """Maps of features -> logits that the image is real.

    Attributes:
        width: channels of the mixed maps and of the heads.
        cross_scale: mix across scales too: from the coarsest on, each map is convolved and added to the next finer.
        dtype: compute dtype; the last layer of each head stays float32.
    """

    of_features: ClassVar[bool] = True  # it is called with maps, not with images

    width: int = 64
    cross_scale: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, maps: Sequence[jax.Array]) -> jax.Array:
        """Maps (B, h, w, D) of an image's features, the finest first -> logits (B, N) float32 of all heads.

        Raises:
            UserError: `width` is out of its range.
        """
        if not 1 <= self.width <= layers.WIDEST:
            raise UserError("objective.discriminator.width", self.width, f"must be 1 to {layers.WIDEST}")
        mixed = [self._fixed(x.astype(self.dtype), f"frozen_channels_{i}", 1) for i, x in enumerate(maps)]
        if self.cross_scale:
            for i, x in reversed(list(enumerate(mixed))):
                coarser = layers.resized(mixed[i + 1], *x.shape[1:3]) if i + 1 < len(mixed) else 0
                mixed[i] = self._fixed(x + coarser, f"frozen_scales_{i}", 3)
        side = min(min(x.shape[1:3]) for x in mixed)
        heads = [Head(self.width, side, self.dtype, name=f"head_{i}")(x) for i, x in enumerate(mixed)]
        return jnp.concatenate([x.reshape(len(x), -1) for x in heads], axis=-1)

    def _fixed(self, x: jax.Array, name: str, size: int) -> jax.Array:
        kernel = self.param(name, initializers.kaiming, (size, size, x.shape[-1], self.width))
        return convolve(x, jax.lax.stop_gradient(kernel).astype(self.dtype))


class Head(nn.Module):
    """A mixed map -> logits; layers of stride 2 until it is as small as the coarsest map.

    Attributes:
        width: of the layers.
        side: of the coarsest map.
        dtype: compute dtype of all layers but the last.
    """

    width: int
    side: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x (B, h, w, D) -> (B, h', w', 1) float32."""
        x = nn.leaky_relu(SpectralConv(self.width, 1, self.dtype, name="conv_in")(x), SLOPE)
        halvings = 0
        while min(x.shape[1:3]) > self.side:
            x = nn.leaky_relu(SpectralConv(self.width, 2, self.dtype, name=f"down_{halvings}")(x), SLOPE)
            halvings += 1
        return SpectralConv(1, 1, name="conv_out")(x)


class SpectralConv(nn.Module):
    """A 3x3 convolution whose kernel, as a matrix, has the largest singular value 1 (Miyato et al. 2018, Sec. 2.1).

    The power method begins anew at each call, so that nothing is kept between steps.
    """

    features: int
    stride: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x (B, H, W, C) -> (B, H / stride, W / stride, features), sides rounded up."""
        kernel = self.param("kernel", initializers.lecun, (3, 3, x.shape[-1], self.features))
        bias = self.param("bias", initializers.zeros, (self.features,))
        kernel = kernel / largest_singular_value(kernel.reshape(-1, self.features))
        return convolve(x.astype(self.dtype), kernel.astype(self.dtype), self.stride) + bias.astype(self.dtype)


def largest_singular_value(matrix: jax.Array) -> jax.Array:
    """() of a matrix (M, N), by POWERS iterations; its gradient is that at the singular vectors found."""
    constant = jax.lax.stop_gradient(matrix)
    v = jax.random.normal(jax.random.key(0), matrix.shape[1:])
    for _ in range(POWERS):
        u = _unit(constant @ v)
        v = _unit(u @ constant)
    return u @ matrix @ v


def _unit(x: jax.Array) -> jax.Array:
    return x / jnp.maximum(jnp.linalg.norm(x), SMALLEST)


build = ProjectedDiscriminator
