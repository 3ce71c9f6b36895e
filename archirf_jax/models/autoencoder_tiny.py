"""A tiny autoencoder for latents of Stable Diffusion's (TAESD, madebyollin): convolutions and ReLUs without norms."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from archirf_jax.errors import UserError
from archirf_jax.models import initializers, layers
from archirf_jax.models.adm_layers import doubled
from archirf_jax.models.autoencoder_body import MOST_LEVELS
from archirf_jax.models.convolution import Conv
from archirf_jax.models.latents import Autoencoder

# The published autoencoders by the latents that they are for, and one for images of 8 to 32 pixels on a CPU.
PRESETS: dict[str, dict[str, Any]] = {
    "tiny": dict(width=8, num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1)),
    "taesd": {},
    "taesd3": dict(latent_channels=16),
}


class AutoencoderTiny(Autoencoder, layers.Presets):
    """Images <-> latents; fields besides those of `Autoencoder`:

    Attributes:
        width: channels of the encoder.
        decoder_width: channels of the decoder; None = those of the encoder.
        num_encoder_blocks: blocks of each level, the finest first.
        num_decoder_blocks: blocks of each level, the coarsest first.
        latent_magnitude, latent_shift: z / (2 latent_magnitude) + latent_shift, within [0, 1], is a latent as a
            picture (`to_picture`).
    """

    width: int = 64
    decoder_width: int | None = None
    num_encoder_blocks: tuple[int, ...] = (1, 3, 3, 3)
    num_decoder_blocks: tuple[int, ...] = (3, 3, 3, 1)
    latent_magnitude: float = 3.0
    latent_shift: float = 0.5

    presets = PRESETS

    @property
    def factor(self) -> int:
        """How many times smaller the latents' sides are than the images'."""
        return 2 ** (len(self.num_encoder_blocks) - 1)

    def setup(self) -> None:
        """The two halves."""
        self._check()
        self.encoder = TinyEncoder(self.width, self.num_encoder_blocks, self.latent_channels, self.dtype)
        width = self.decoder_width or self.width
        self.decoder = TinyDecoder(width, self.num_decoder_blocks, self.out_channels, self.dtype)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Images (B, H, W, C) in [-1, 1] -> their reconstructions."""
        return self.decode(self.encode(images))

    def encode(self, images: jax.Array) -> jax.Array:
        """Images (B, H, W, C) in [-1, 1] -> latents (B, h, w, latent_channels) float32, as a diffusion model sees them.

        Raises:
            UserError: the sides of the images do not halve often enough.
        """
        height, width = images.shape[1:3]
        if height % self.factor or width % self.factor:
            what = f"halves the image {len(self.num_encoder_blocks) - 1} times, which {height}x{width} does not allow"
            raise UserError("model.num_encoder_blocks", self.num_encoder_blocks, what)
        return self.encoder((images + 1) / 2)

    def decode(self, z: jax.Array) -> jax.Array:
        """Latents (B, h, w, latent_channels) -> images (B, H, W, out_channels) around [-1, 1]."""
        return 2 * self.decoder(z) - 1

    def to_picture(self, z: jax.Array) -> jax.Array:
        """Latents (B, h, w, C) -> the same within [0, 1], to be looked at or stored in 8 bits."""
        return jnp.clip(z / (2 * self.latent_magnitude) + self.latent_shift, 0, 1)

    def _check(self) -> None:
        positive = ("latent_channels", "out_channels", "width", "decoder_width", "latent_magnitude")
        layers.require(self, lambda value: value > 0, "must be above 0", *positive)
        layers.require(self, lambda value: value <= layers.WIDEST, f"must be at most {layers.WIDEST}", *positive[:4])
        for field in ("num_encoder_blocks", "num_decoder_blocks"):
            rule = f"must name 1 to {MOST_LEVELS} levels, with 0 to {layers.DEEPEST} blocks each"
            layers.require(self, _is_depth, rule, field)
        if len(self.num_decoder_blocks) != len(self.num_encoder_blocks):
            must = f"must have as many levels as the encoder, {len(self.num_encoder_blocks)}"
            raise UserError("model.num_decoder_blocks", self.num_decoder_blocks, must)


def _is_depth(blocks: tuple[int, ...]) -> bool:
    return 0 < len(blocks) <= MOST_LEVELS and min(blocks) >= 0 and max(blocks) <= layers.DEEPEST


class TinyBlock(nn.Module):
    """Three convolutions with ReLUs between them, added to their input, and a ReLU of the sum."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x (B, H, W, D) -> (B, H, W, D)."""
        h = x
        for i in range(3):
            h = _conv(x.shape[-1], self.dtype, f"conv_{i}")(h if i == 0 else nn.relu(h))
        return nn.relu(h + x)


class TinyEncoder(nn.Module):
    """Images in [0, 1] -> latents; `blocks` of each level, the finest first."""

    width: int
    blocks: tuple[int, ...]
    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, h: jax.Array) -> jax.Array:
        """(B, H, W, C) -> (B, H / factor, W / factor, features) float32."""
        for level, blocks in enumerate(self.blocks):
            h = _conv(self.width, self.dtype, f"level_{level}_conv", bias=level == 0, stride=2 if level else 1)(h)
            for i in range(blocks):
                h = TinyBlock(self.dtype, name=f"level_{level}_block_{i}")(h)
        return _conv(self.features, jnp.float32, "conv_out")(h)


class TinyDecoder(nn.Module):
    """Latents -> images in [0, 1]; `blocks` of each level, the coarsest first."""

    width: int
    blocks: tuple[int, ...]
    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        """(B, h, w, C), softly clamped to [-3, 3] -> (B, factor h, factor w, features) float32."""
        h = nn.relu(_conv(self.width, self.dtype, "conv_in")(3 * jnp.tanh(z / 3)))
        for level, blocks in enumerate(self.blocks):
            for i in range(blocks):
                h = TinyBlock(self.dtype, name=f"level_{level}_block_{i}")(h)
            if level + 1 < len(self.blocks):
                h = _conv(self.width, self.dtype, f"level_{level}_conv", bias=False)(doubled(h))
        return _conv(self.features, jnp.float32, "conv_out")(h)


def _conv(width: int, dtype: Any, name: str, bias: bool = True, stride: int = 1) -> Conv:
    return Conv(width, 3, stride, dtype, initializers.uniform, use_bias=bias, name=name)


build = AutoencoderTiny
