"""Latent diffusion's U-Net (Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models",
Sec. 3.3), as Stable Diffusion 1, 2 and XL (Podell et al. 2023, Sec. 2) have it.

Residual blocks that are conditioned on the time, each followed by a transformer over pixels that reads a text.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from archirf_jax.contracts import Condition
from archirf_jax.errors import UserError
from archirf_jax.models import initializers, layers
from archirf_jax.models.adm_layers import ResBlock, TimeEmbedding, conv, doubled, group_norm
from archirf_jax.models.conditions import pack, pooled_text
from archirf_jax.models.latent_unet_layers import Lengths, SpatialTransformer
from archirf_jax.models.latent_unet_levels import Level, levels_of

_SD = dict(block_out_channels=(320, 640, 1280, 1280), transformer_depth=(1, 1, 1, 0))
_XL = dict(num_head_channels=64, use_linear_projection=True, pooled_width=1280, size_width=256)

# The published models; "tiny" is this project's own, for 8x8 to 32x32 on a CPU.
PRESETS: dict[str, dict[str, Any]] = {
    "tiny": dict(
        block_out_channels=(32, 64), layers_per_block=1, transformer_depth=(0, 1), num_heads=2, context_width=64
    ),
    "sd15": _SD | dict(num_heads=8, context_width=768),
    "sd21": _SD | dict(num_head_channels=64, context_width=1024, use_linear_projection=True),
    "sdxl": _XL
    | dict(block_out_channels=(320, 640, 1280), transformer_depth=(0, 2, 10), middle_depth=10, context_width=2048),
    "sdxl-refiner": _XL
    | dict(block_out_channels=(384, 768, 1536, 1536), transformer_depth=(0, 4, 4, 0), middle_depth=4)
    | dict(context_width=1280, size_numbers=5),
    "sd-upscaler": dict(block_out_channels=(256, 512, 512, 1024), transformer_depth=(0, 1, 1, 1))
    | dict(only_cross_attention=(False, True, True, False), use_linear_projection=True)
    | dict(num_heads=8, context_width=1024, noise_levels=1000, low_res=True),
}


class LatentUNet(nn.Module, layers.Presets):
    """A U-Net of residual blocks and transformers. Fields "of a level" are one value, or one for each level.

    Attributes:
        block_out_channels: width of each level, multiples of norm_num_groups; times are embedded in four times the
            first.
        layers_per_block: residual blocks of a level; there is one more on the way up.
        transformer_depth: transformer blocks after each residual block of a level; 0 = none there.
        middle_depth: transformer blocks in the middle.
        num_heads: attention heads of a level; the middle has as many as the last.
        num_head_channels: width of a head instead of num_heads.
        only_cross_attention: in a level, the first attention of transformers reads the text as well. The middle's
            never does.
        use_linear_projection: pixels are projected by linear layers around the transformers; otherwise by convolutions.
        context_width: of the text's tokens.
        norm_num_groups: groups of every norm of a map.
        scale_shift_norm: the embedding scales and shifts the second norm of residual blocks; otherwise it is added
            before it.
        pooled_width: of the condition "pooled"; None = it is not read.
        size_width: channels in which each number of the condition "size" is embedded, even; None = it is not read. Goes
            with pooled_width.
        size_numbers: numbers in "size": height, width, crop top, left, target height, width; or a score for the last
            two.
        noise_levels: rows of a table of the condition "noise_level", a whole number below that; None = it is not read.
        low_res: concatenate the image "low_res" (B, h, w, C'), bilinearly resized, behind x's channels.
        inpaint: concatenate a hole and what is around it, "inpaint" (B, H, W, 1 + C), behind x's channels.
        out_channels: output channels; None = those of x.
        dropout: rate in residual blocks; active where an rng called "dropout" is given.
        dtype: compute dtype; norms, softmax, embeddings and the last layer stay float32.
        remat: keep no activations of blocks for the backward pass.
    """

    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int | tuple[int, ...] = 2
    transformer_depth: int | tuple[int, ...] = 1
    middle_depth: int = 1
    num_heads: int | tuple[int, ...] = 8
    num_head_channels: int | None = None
    only_cross_attention: bool | tuple[bool, ...] = False
    use_linear_projection: bool = False
    context_width: int = 768
    norm_num_groups: int = 32
    scale_shift_norm: bool = False
    pooled_width: int | None = None
    size_width: int | None = None
    size_numbers: int = 6
    noise_levels: int | None = None
    low_res: bool = False
    inpaint: bool = False
    out_channels: int | None = None
    dropout: float = 0.0
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    presets = PRESETS

    @nn.compact
    def __call__(self, x: jax.Array, t: jax.Array, condition: Condition) -> jax.Array:
        """Noisy latents x (B, H, W, C), of any size, at network times t (B,) -> (B, H, W, out_channels) float32.

        The condition holds "tokens" (B, L, context_width), maybe "mask" (B, L), and as the attributes above say
        "pooled" (B, P), "size" (B, n), "noise_level" (B,), "low_res" and "inpaint". Tokens that the mask hides have no
        effect.

        Raises:
            UserError: a field that the attributes above do not allow, or a condition that is missing or of another
                width.
        """
        levels = levels_of(self)
        self._check()
        channels = self.out_channels or x.shape[-1]
        text, lengths = pack(condition, self.context_width)
        if self.low_res:
            low_res = layers.entry(condition, "low_res").astype(x.dtype)
            x = jnp.concatenate([x, layers.resized(low_res, *x.shape[1:3])], axis=-1)
        if self.inpaint:
            x = jnp.concatenate([x, layers.entry(condition, "inpaint").astype(x.dtype)], axis=-1)
        emb = TimeEmbedding(self.block_out_channels[0], name="time_embedding")(t) + self._added(condition)
        h = self._through(levels, x.astype(self.dtype), emb, text.astype(self.dtype), lengths)
        h = nn.silu(group_norm("norm", self.norm_num_groups)(h))
        return conv(channels, jnp.float32, "output", init=initializers.zeros)(h)

    @nn.nowrap
    def condition_ranges(self) -> dict[str, tuple[float, float]]:
        """The lowest and the highest number that a condition may be; beyond them there is no row of a table."""
        return {} if self.noise_levels is None else {"noise_level": (0, self.noise_levels - 1)}

    @nn.nowrap
    def sizes(self, trained: tuple[int, int]) -> tuple[int, int | None]:
        """What sides of images are multiples of, and the largest side after training at `trained`; None = any."""
        del trained
        return 2 ** (len(self.block_out_channels) - 1), None

    def _through(
        self, levels: tuple[Level, ...], x: jax.Array, emb: jax.Array, text: jax.Array, lengths: Lengths
    ) -> jax.Array:
        """The way down, the middle and the way up: (B, H, W, C) -> (B, H, W, D)."""

        def layer(h: jax.Array, level: Level, where: str, i: int) -> jax.Array:
            h = self._block(level, f"{where}_block_{i}")(h, emb)
            return self._transformer(level, f"{where}_attention_{i}")(h, text, lengths) if level.depth else h

        h = conv(levels[0].width, self.dtype, "input")(x)
        maps = [h]
        for number, level in enumerate(levels):
            for i in range(level.blocks):
                h = layer(h, level, f"down_{number}", i)
                maps.append(h)
            if number + 1 < len(levels):
                h = conv(level.width, self.dtype, f"down_{number}_resample", stride=2)(h)
                maps.append(h)
        middle = dataclasses.replace(levels[-1], depth=self.middle_depth, only_cross_attention=False)
        h = layer(h, middle, "middle", 0)
        h = self._block(middle, "middle_block_1")(h, emb)
        for number, level in reversed(list(enumerate(levels))):
            for i in range(level.blocks + 1):
                h = layer(jnp.concatenate([h, maps.pop()], axis=-1), level, f"up_{number}", i)
            if number:
                height, width = maps[-1].shape[1:3]  # odd sides were rounded up on the way down
                h = conv(level.width, self.dtype, f"up_{number}_resample")(doubled(h)[:, :height, :width])
        return h

    def _block(self, level: Level, name: str) -> ResBlock:
        make = nn.remat(ResBlock) if self.remat else ResBlock
        return make(
            level.width,
            self.scale_shift_norm,
            self.dropout,
            dtype=self.dtype,
            groups=self.norm_num_groups,
            name=name,
        )

    def _transformer(self, level: Level, name: str) -> SpatialTransformer:
        make = nn.remat(SpatialTransformer) if self.remat else SpatialTransformer
        return make(
            level.depth,
            level.num_heads,
            level.only_cross_attention,
            self.use_linear_projection,
            self.norm_num_groups,
            self.dtype,
            name=name,
        )

    def _added(self, condition: Condition) -> jax.Array:
        """What is added to the embedding of the time: (B, E), or the number 0."""
        width, added = 4 * self.block_out_channels[0], jnp.float32(0)
        if self.pooled_width is not None:
            vector = pooled_text(condition, self.pooled_width).astype(jnp.float32)
            if self.size_width is not None:
                size = layers.entry(condition, "size")
                layers.check_entry("size_numbers", self.size_numbers, size)
                numbers = layers.sinusoidal_embedding(size.reshape(-1), self.size_width).reshape(len(size), -1)
                vector = jnp.concatenate([vector, numbers], axis=-1)
            added = layers.VectorEmbedder(width, name="size_embedding")(vector)
        if self.noise_levels is not None:
            level = jnp.round(layers.entry(condition, "noise_level")).astype(jnp.int32)
            table = nn.Embed(self.noise_levels, width, embedding_init=initializers.unit_normal, name="noise_embedding")
            added = added + table(level)
        return added

    def _check(self) -> None:
        counts = ("middle_depth", "context_width", "pooled_width", "size_width", "size_numbers", "noise_levels")
        layers.require(self, lambda value: value > 0, "must be above 0", *counts, "out_channels")
        layers.require(self, lambda value: value <= layers.DEEPEST, f"must be at most {layers.DEEPEST}", "middle_depth")
        layers.require(self, lambda value: value % 2 == 0, "must be even", "size_width")
        layers.require(self, lambda value: 0 <= value < 1, "must lie in [0, 1)", "dropout")
        if self.pooled_width is None and self.size_width is not None:
            raise UserError(
                "model.size_width", self.size_width, "needs model.pooled_width, beside which sizes are read"
            )


build = LatentUNet
