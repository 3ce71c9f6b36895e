"""ADM's U-Net (Dhariwal & Nichol 2021, "Diffusion Models Beat GANs on Image Synthesis", Sec. 3 and tables 4, 11, 12).

Residual blocks with attention at the coarse levels, conditioned on time and label by adaptive group norms; with
`super_resolution` it also sees a smaller image, as ADM-U does, and with `context_width` it reads a text, as GLIDE does
(Nichol et al. 2021, "GLIDE: Towards Photorealistic Image Generation and Editing with Text-Guided Diffusion Models",
Sec. 4). The output is exactly 0 at initialisation.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from archirf_jax.contracts import Condition
from archirf_jax.errors import UserError
from archirf_jax.models import initializers, layers
from archirf_jax.models.adm_halves import Decoder, Encoder, Plan
from archirf_jax.models.adm_layers import TimeEmbedding, conv, group_norm
from archirf_jax.models.conditions import check_null_tokens, pack, pooled_text, with_null

_PUBLISHED = dict(num_res_blocks=2, scale_shift_norm=True, resblock_updown=True, learn_sigma=True)
_IMAGENET256 = _PUBLISHED | dict(
    model_channels=256, channel_mult=(1, 1, 2, 2, 4, 4), attention_downsamples=(8, 16, 32), num_head_channels=64
)
_UPSAMPLER = _PUBLISHED | dict(model_channels=192, channel_mult=(1, 1, 2, 2, 4, 4), super_resolution=True)

# The published models by data and size, as their flags say; "tiny" is this project's own, for 8x8 to 32x32 on a CPU.
PRESETS: dict[str, dict[str, Any]] = {
    "tiny": _PUBLISHED
    | dict(
        model_channels=32,
        num_res_blocks=1,
        channel_mult=(1, 2),
        attention_downsamples=(2,),
        num_head_channels=32,
        learn_sigma=False,
    ),
    "imagenet64": _PUBLISHED
    | dict(
        model_channels=192,
        num_res_blocks=3,
        channel_mult=(1, 2, 3, 4),
        attention_downsamples=(2, 4, 8),
        num_head_channels=64,
        attention_order="new",
        dropout=0.1,
    ),
    "imagenet128": _PUBLISHED
    | dict(model_channels=256, channel_mult=(1, 1, 2, 3, 4), attention_downsamples=(4, 8, 16), num_heads=4),
    "imagenet256": _IMAGENET256,
    "imagenet256-unconditional": _IMAGENET256 | dict(class_conditional=False),
    "imagenet512": _IMAGENET256 | dict(channel_mult=(0.5, 1, 1, 2, 2, 4, 4), attention_downsamples=(16, 32, 64)),
    "lsun256": _IMAGENET256 | dict(class_conditional=False, dropout=0.1),
    "upsample64-256": _UPSAMPLER | dict(attention_downsamples=(8, 16, 32), num_heads=4),
    "upsample128-512": _UPSAMPLER | dict(attention_downsamples=(16, 32), num_head_channels=64),
}


class ADMUNet(nn.Module, layers.Presets):
    """A U-Net of residual blocks.

    Attributes:
        num_classes: labels are 0..num_classes-1; the null label num_classes adds nothing to the embedding. May be
            None where class_conditional is False.
        class_conditional: False ignores labels and has no table of them.
        model_channels: width that `channel_mult` multiplies, even; times and labels are embedded in four times as many.
        num_res_blocks: residual blocks of a level (the decoder has one more).
        channel_mult: one factor a level; each level's width must be a multiple of 32.
        attention_downsamples: powers of 2: attention follows the blocks where the image is so many times smaller.
            The middle always has one.
        num_heads: attention heads, where num_head_channels is None.
        num_head_channels: width of an attention head; None = as num_heads says.
        num_heads_upsample: heads in the decoder, where num_head_channels is None; None = num_heads.
        attention_order: "legacy" or "new": the layout of the attention's projection, of no consequence in training.
        scale_shift_norm: adaptive group norm (Sec. 3.1); False adds the embedding before the norm.
        resblock_updown: residual blocks change the resolution.
        conv_resample: otherwise convolutions change it; False = no parameters do.
        dropout: rate in residual blocks, or one a level; active where an rng called "dropout" is given.
        learn_sigma: give 2C output channels instead of C; the second half is the variance's.
        out_channels: output channels; None = as learn_sigma says.
        super_resolution: concatenate the image "low_res" (B, h, w, C), bilinearly resized, to x's channels.
        context_width: width of text tokens, which join the pixels' keys and values in every attention; None = no text
            is read.
        pooled_width: width of pooled text vectors, which are projected and added to the embedding of time as labels
            are; None = none are read.
        null_tokens: learned tokens that stand for a text whose mask is all False, with a pooled vector; 0 = none do.
        dtype: compute dtype; norms, softmax, the embedding of time and the last layer stay float32.
        remat: keep no activations of blocks for the backward pass.
    """

    num_classes: int | None = None
    class_conditional: bool = True
    model_channels: int = 128
    num_res_blocks: int = 2
    channel_mult: tuple[float, ...] = (1, 2, 3, 4)
    attention_downsamples: tuple[int, ...] = (4, 8)
    num_heads: int = 4
    num_head_channels: int | None = None
    num_heads_upsample: int | None = None
    attention_order: str = "legacy"
    scale_shift_norm: bool = True
    resblock_updown: bool = True
    conv_resample: bool = True
    dropout: float | tuple[float, ...] = 0.0
    learn_sigma: bool = False
    out_channels: int | None = None
    super_resolution: bool = False
    context_width: int | None = None
    pooled_width: int | None = None
    null_tokens: int = 0
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    presets = PRESETS

    @nn.compact
    def __call__(self, x: jax.Array, t: jax.Array, condition: Condition) -> jax.Array:
        """Noisy images x (B, H, W, C) at network times t (B,) -> (B, H, W, C') float32; C' is C, 2C or out_channels.

        The condition holds "label" (B,), "low_res" (B, h, w, C), "tokens" (B, L, context_width) with "mask" (B, L), and
        "pooled" (B, pooled_width), as far as the attributes above say. Tokens that the mask hides have no effect.

        Raises:
            UserError: a field or an image size that the attributes above do not allow, or a missing condition.
        """
        plan = Plan.of(self)
        self._check(plan, *x.shape[1:3])
        channels = self.out_channels or x.shape[-1] * (2 if self.learn_sigma else 1)
        if self.super_resolution:
            low_res = layers.entry(condition, "low_res").astype(x.dtype)
            x = jnp.concatenate([x, layers.resized(low_res, *x.shape[1:3])], axis=-1)
        emb = TimeEmbedding(self.model_channels, name="time_embedding")(t)
        if self.class_conditional:
            emb = emb + self._label(layers.entry(condition, "label"))
        text = None
        if self.context_width is not None:
            condition = with_null(self, condition, self.null_tokens, self.context_width, self.pooled_width)
            text = pack(condition, self.context_width)
        if self.pooled_width is not None:
            pooled = pooled_text(condition, self.pooled_width).astype(jnp.float32)
            dense = nn.Dense(4 * self.model_channels, kernel_init=initializers.uniform, name="pooled_embedding")
            emb = emb + dense(pooled)
        h, maps = Encoder(plan, name="encoder")(x.astype(self.dtype), emb, text)
        h = Decoder(plan, name="decoder")(h, maps, emb, text)
        h = nn.silu(group_norm("norm")(h))
        return conv(channels, jnp.float32, "output", init=initializers.zeros)(h)

    @nn.nowrap
    def sizes(self, trained: tuple[int, int]) -> tuple[int, int | None]:
        """What sides of images are multiples of, and the largest side after training at `trained`; None = any."""
        del trained
        return 2 ** (len(self.channel_mult) - 1), None

    def _label(self, y: jax.Array) -> jax.Array:
        """(B,) -> (B, E); zeros for the null label."""
        assert self.num_classes is not None, "checked"
        table = nn.Embed(
            self.num_classes,
            4 * self.model_channels,
            embedding_init=initializers.unit_normal,
            name="label_embedding",
        )
        rows = table(jnp.minimum(y, self.num_classes - 1))
        return jnp.where((y < self.num_classes)[:, None], rows, 0.0)

    def _check(self, plan: Plan, height: int, width: int) -> None:
        plan.check(height, width)
        if self.class_conditional and (self.num_classes is None or self.num_classes < 1):
            message = "must be above 0; without labels, set model.class_conditional to False"
            raise UserError("model.num_classes", self.num_classes, message)
        counts = ("num_head_channels", "num_heads_upsample", "out_channels", "context_width", "pooled_width")
        layers.require(self, lambda value: value > 0, "must be above 0", *counts)
        layers.require(self, lambda value: value >= 0, "must be 0 or more", "null_tokens")
        check_null_tokens(self.null_tokens, self.context_width is not None, "model.context_width")


build = ADMUNet
