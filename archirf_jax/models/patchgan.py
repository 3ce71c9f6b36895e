"""A discriminator of patches: one logit for every window of an image (Isola et al. 2017, pix2pix, Sec. 3.2.2)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from archirf_jax.errors import UserError
from archirf_jax.models import initializers, layers
from archirf_jax.models.convolution import Conv
from archirf_jax.models.group_norm import GroupNorm

NORMS = ("group", "batch", "none")
STATISTICS = "batch_stats"  # the collection of running means and variances
SLOPE = 0.2  # of the leaky ReLU below 0
WIDEST = 8  # times the first layer


class PatchGAN(nn.Module):
    """Images -> logits that they are real, one for every patch.

    Attributes:
        width: channels of the first layer; each layer doubles them, up to WIDEST times.
        depth: layers with a norm, after the first; all but the last of them halve the image, as the first does.
        norm: one of NORMS. "batch" normalizes over the whole batch, as published: examples are then coupled.
        norm_num_groups: of norm "group", or as many as there are channels.
        dtype: compute dtype; norms and the last layer stay float32.
    """

    width: int = 64
    depth: int = 3
    norm: str = "group"
    norm_num_groups: int = 32
    dtype: jnp.dtype = jnp.float32

    @property
    def couples_examples(self) -> bool:
        """Whether the logits of an image depend on the others of its batch."""
        return self.norm == "batch"

    @nn.compact
    def __call__(self, images: jax.Array, running: bool = False) -> jax.Array:
        """Images (B, H, W, C) in [-1, 1] -> logits (B, h, w, 1) float32.

        Args:
            images: each side at least as large as one patch needs.
            running: of norm "batch": normalize with the running statistics, variables of the collection STATISTICS,
                in place of the batch's. These are kept only where that collection is mutable.

        Raises:
            UserError: a field out of its range, or images too small for a patch.
        """
        self._check()
        h = nn.leaky_relu(self._conv(self.width, 2, True, "conv_0")(images), SLOPE)
        for i in range(1, self.depth + 1):
            h = self._sized(h, images)
            stride, features = 1 if i == self.depth else 2, self.width * min(2**i, WIDEST)
            h = self._conv(features, stride, self.norm == "none", f"conv_{i}")(h)
            h = nn.leaky_relu(self._normed(h, f"norm_{i}", running), SLOPE).astype(self.dtype)
        h = self._sized(h, images).astype(jnp.float32)
        return Conv(1, 4, dtype=jnp.float32, kernel_init=initializers.small_normal, padding=(1, 1), name="conv_out")(h)

    def _conv(self, features: int, stride: int, bias: bool, name: str) -> Conv:
        return Conv(features, 4, stride, self.dtype, initializers.small_normal, (1, 1), bias, name=name)

    def _normed(self, h: jax.Array, name: str, running: bool) -> jax.Array:
        if self.norm == "none":
            return h
        if self.norm == "batch":
            return BatchNorm(name=name)(h, running)
        groups = min(self.norm_num_groups, h.shape[-1])
        return GroupNorm(groups, name=name)(h)

    def _sized(self, h: jax.Array, images: jax.Array) -> jax.Array:
        if min(h.shape[1:3]) < 2:
            height, width = images.shape[1:3]
            what = f"leaves nothing of an image of {height}x{width}; take larger images or fewer layers"
            raise UserError("objective.discriminator.depth", self.depth, what)
        return h

    def _check(self) -> None:
        if self.norm not in NORMS:
            raise UserError("objective.discriminator.norm", self.norm, f"is not one of {', '.join(NORMS)}")
        for field, low, high in (("width", 1, layers.WIDEST), ("depth", 1, 30), ("norm_num_groups", 1, layers.WIDEST)):
            if not low <= getattr(self, field) <= high:
                must = f"must be {low} or more and at most {high}"
                raise UserError(f"objective.discriminator.{field}", getattr(self, field), must)
        if self.norm == "group" and self.width % min(self.norm_num_groups, self.width):
            must = f"must divide the first layer's channels, and does not divide {self.width}"
            raise UserError("objective.discriminator.norm_num_groups", self.norm_num_groups, must)


class BatchNorm(nn.Module):
    """Mean 0 and variance 1 of every channel over batch and pixels, in float32 (Ioffe & Szegedy 2015).

    Attributes:
        momentum: how much of the running statistics each batch replaces.
        epsilon: added to the variance.
    """

    momentum: float = 0.1
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array, running: bool = False) -> jax.Array:
        """x (B, H, W, D) -> (B, H, W, D) float32; `running` as in `PatchGAN`."""
        x, shape = x.astype(jnp.float32), x.shape[-1:]
        scale = self.param("scale", initializers.ones, shape)
        bias = self.param("bias", initializers.zeros, shape)
        mean = jnp.mean(x, axis=(0, 1, 2))
        variance = jnp.mean(jnp.square(x - mean), axis=(0, 1, 2))
        if running or self.is_mutable_collection(STATISTICS):
            kept = {"mean": mean, "var": variance * (x.size / shape[0] / max(x.size / shape[0] - 1, 1))}
            stored = {name: self.variable(STATISTICS, name, jnp.full, shape, float(name == "var")) for name in kept}
            if running:
                mean, variance = stored["mean"].value, stored["var"].value
            elif not self.is_initializing():
                for name, value in kept.items():
                    stored[name].value += self.momentum * (value - stored[name].value)
        return (x - mean) * jax.lax.rsqrt(variance + self.epsilon) * scale + bias


build = PatchGAN
