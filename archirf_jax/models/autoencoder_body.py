"""The body that all convolutional autoencoders share: an encoder that halves images, a decoder that doubles them again.

Rombach et al. 2022 (LDM), appendix E.1. What becomes of the encoder's map (a distribution, a code, a bounded latent)
is the matter of each autoencoder. Levels count from the finest.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
from einops import rearrange

from archirf_jax.errors import UserError
from archirf_jax.models import layers
from archirf_jax.models.autoencoder_layers import CODE_GROUPS, Downsample, Norm, PixelAttention, ResidualBlock, Upsample
from archirf_jax.models.autoencoder_layers import conv as _conv

MOST_LEVELS = 16  # each halves the image
WIDEST_PATCH = 64


@dataclasses.dataclass(frozen=True)
class Body:
    """What both halves of one autoencoder share.

    Attributes:
        block_out_channels: width of each level, the finest first.
        layers_per_block: residual blocks of a level (the decoder has one more).
        encoder_layers: those of the encoder, if it has another number; a set that is encoded once can have a deep one.
        norm_num_groups: groups of channels that are normalized together; must divide every width.
        attention_levels: levels whose residual blocks are each followed by attention.
        mid_block_add_attention: whether there is attention between the two blocks of the coarsest map.
        patch_size: side of the squares of pixels whose channels are one pixel of the finest level.
        dtype: compute dtype; norms, softmax and the last layer of each half stay float32.
        remat: keep no activations of blocks for the backward pass.
    """

    block_out_channels: tuple[int, ...]
    layers_per_block: int
    encoder_layers: int | None
    norm_num_groups: int
    attention_levels: tuple[int, ...]
    mid_block_add_attention: bool
    patch_size: int
    dtype: Any
    remat: bool

    @classmethod
    def of(cls, model: nn.Module) -> Body:
        """The fields of an autoencoder.

        Raises:
            UserError: one is out of its range.
        """
        body = cls(**{field.name: getattr(model, field.name) for field in dataclasses.fields(cls)})
        body._check(getattr(model, "norm_type", "group"))
        return body

    @property
    def factor(self) -> int:
        """How many times smaller the latent's sides are."""
        return self.patch_size * 2 ** (len(self.block_out_channels) - 1)

    def block(self, width: int, name: str) -> ResidualBlock:
        """A residual block; only inside a compact module."""
        make = nn.remat(ResidualBlock) if self.remat else ResidualBlock
        return make(width, self.norm_num_groups, self.dtype, name=name)

    def attention(self, name: str) -> PixelAttention:
        """Attention of all pixels; only inside a compact module."""
        make = nn.remat(PixelAttention) if self.remat else PixelAttention
        return make(self.norm_num_groups, self.dtype, name=name)

    def middle(self, h: jax.Array, code: jax.Array | None = None) -> jax.Array:
        """The coarsest map through the middle of a half; only inside a compact module."""
        h = self.block(h.shape[-1], "middle_block_0")(h, code)
        if self.mid_block_add_attention:
            h = self.attention("middle_attention")(h, code)
        return self.block(h.shape[-1], "middle_block_1")(h, code)

    def out(self, h: jax.Array, features: int, code: jax.Array | None = None) -> jax.Array:
        """The last norm and layer of a half; only inside a compact module."""
        return _conv(features, "conv_out")(nn.silu(Norm(self.norm_num_groups, name="norm_out")(h, code)))

    def _check(self, norm_type: str) -> None:
        rule = f"must name 1 to {MOST_LEVELS} levels"
        layers.require(self, lambda widths: 0 < len(widths) <= MOST_LEVELS, rule, "block_out_channels")
        depths = ("layers_per_block", "encoder_layers")
        layers.require(self, lambda value: value > 0, "must be above 0", *depths, "norm_num_groups", "patch_size")
        layers.require(self, lambda value: value <= WIDEST_PATCH, f"must be at most {WIDEST_PATCH}", "patch_size")
        layers.require(self, lambda value: value <= layers.DEEPEST, f"must be at most {layers.DEEPEST}", *depths)
        groups, field = self.norm_num_groups, "norm_num_groups"
        if norm_type == "spatial" and any(width % CODE_GROUPS for width in self.block_out_channels):
            groups, field = CODE_GROUPS, "block_out_channels"
        for width in self.block_out_channels:
            if not 0 < width <= layers.WIDEST:
                raise UserError("model.block_out_channels", width, f"must be above 0 and at most {layers.WIDEST}")
            if width % groups:
                must = f"must divide every level's channels, and {groups} does not divide {width}"
                raise UserError(f"model.{field}", getattr(self, field), must)
        for level in self.attention_levels:
            if level not in range(len(self.block_out_channels)):
                message = f"is not one of {len(self.block_out_channels)} levels, which count from 0"
                raise UserError("model.attention_levels", level, message)

    def check_image(self, images: jax.Array) -> None:
        """Raise a UserError unless the sides of images (B, H, W, C) halve as often as there are levels."""
        height, width = images.shape[1:3]
        if height % self.factor or width % self.factor:
            raise UserError(
                "model.block_out_channels",
                self.block_out_channels,
                f"with patch_size={self.patch_size} makes latents {self.factor} times smaller than images, which an "
                f"image of {height}x{width} does not allow; both sides must be multiples of {self.factor}",
            )


class Encoder(nn.Module):
    """Images -> the map that the latent is made of.

    Attributes:
        body: what both halves share.
        features: channels of the map.
    """

    body: Body
    features: int

    @nn.compact
    def __call__(self, images: jax.Array, levels: bool = False) -> Any:
        """Images (B, H, W, C) -> (B, H / factor, W / factor, features) float32.

        With `levels` it gives in place of that the map of every level, before it is halved, the finest first.

        Raises:
            UserError: the sides of the images do not halve often enough.
        """
        body = self.body
        body.check_image(images)
        images = folded(images, body.patch_size)
        h = _conv(body.block_out_channels[0], "conv_in", body.dtype)(images)
        maps = []
        for level, width in enumerate(body.block_out_channels):
            for i in range(body.encoder_layers or body.layers_per_block):
                h = body.block(width, f"down_{level}_block_{i}")(h)
                if level in body.attention_levels:
                    h = body.attention(f"down_{level}_attention_{i}")(h)
            maps.append(h)
            if level + 1 < len(body.block_out_channels):
                h = Downsample(body.dtype, name=f"down_{level}_resample")(h)
        return maps if levels else body.out(body.middle(h), self.features)


class Decoder(nn.Module):
    """A latent -> images.

    Attributes:
        body: what both halves share.
        features: channels of the images.
    """

    body: Body
    features: int

    @nn.compact
    def __call__(self, z: jax.Array, code: jax.Array | None = None) -> jax.Array:
        """z (B, h, w, D), and the code (B, h, w, C) of the norms, if they have one -> (B, factor h, ..., features)."""
        body = self.body
        h = _conv(body.block_out_channels[-1], "conv_in", body.dtype)(z)
        h = body.middle(h, code)
        for level, width in reversed(list(enumerate(body.block_out_channels))):
            for i in range(body.layers_per_block + 1):
                h = body.block(width, f"up_{level}_block_{i}")(h, code)
                if level in body.attention_levels:
                    h = body.attention(f"up_{level}_attention_{i}")(h, code)
            if level:
                h = Upsample(body.dtype, name=f"up_{level}_resample")(h)
        return unfolded(body.out(h, self.features * body.patch_size**2, code), body.patch_size)


def folded(images: jax.Array, size: int) -> jax.Array:
    """Images (B, H, W, C) -> (B, H / size, W / size, size size C): squares of pixels become channels."""
    return rearrange(images, "b (r p) (s q) c -> b r s (p q c)", p=size, q=size)


def unfolded(h: jax.Array, size: int) -> jax.Array:
    """The inverse of `folded`."""
    return rearrange(h, "b r s (p q c) -> b (r p) (s q) c", p=size, q=size)
