"""ADM's classifier of noisy images (Dhariwal & Nichol 2021, Sec. 4 and table 12): the encoder of its U-Net and a pool.

Its gradient in the image, d log p(y | x_t) / d x_t, guides sampling towards a label.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from archirf_jax.contracts import Condition
from archirf_jax.errors import UserError
from archirf_jax.models import initializers, layers
from archirf_jax.models.adm_halves import Encoder, Plan
from archirf_jax.models.adm_layers import TimeEmbedding, group_norm, projected
from archirf_jax.models.attention import attend, sow_logit

POOLS = ("attention", "adaptive", "spatial", "spatial_v2")
HIDDEN = 2048  # units of the spatial pools' hidden layer

_PUBLISHED = dict(
    model_channels=128, num_res_blocks=2, num_head_channels=64, scale_shift_norm=True, resblock_updown=True
)
# The published classifiers by image size, as their flags say; "tiny" is this project's own, for 8x8 images on a CPU.
PRESETS: dict[str, dict[str, Any]] = {
    "tiny": _PUBLISHED
    | dict(
        image_size=8,
        model_channels=32,
        num_res_blocks=1,
        channel_mult=(1, 2),
        attention_downsamples=(2,),
        num_head_channels=32,
    ),
    "imagenet64": _PUBLISHED
    | dict(image_size=64, num_res_blocks=4, channel_mult=(1, 2, 3, 4), attention_downsamples=(2, 4, 8)),
    "imagenet128": _PUBLISHED | dict(image_size=128, channel_mult=(1, 1, 2, 3, 4), attention_downsamples=(4, 8, 16)),
    "imagenet256": _PUBLISHED
    | dict(image_size=256, channel_mult=(1, 1, 2, 2, 4, 4), attention_downsamples=(8, 16, 32)),
    "imagenet512": _PUBLISHED
    | dict(image_size=512, channel_mult=(0.5, 1, 1, 2, 2, 4, 4), attention_downsamples=(16, 32, 64)),
}


class ADMClassifier(nn.Module, layers.Presets):
    """Label of a noisy image at a known time.

    Attributes:
        num_classes: labels are 0..num_classes-1.
        image_size: side of the images, for the position table of pool "attention"; the other pools take any size.
        pool: "attention" (over the last map and its mean), "adaptive" (the mean of the last map, then a layer that
            starts at zero), "spatial" or "spatial_v2" (a perceptron of the means of all maps, the second with a norm).
        model_channels, num_res_blocks, channel_mult, attention_downsamples, num_heads, num_head_channels,
        attention_order, scale_shift_norm, resblock_updown, conv_resample, dropout, remat: as in `adm_unet.ADMUNet`.
        dtype: compute dtype; norms, softmax, the embedding of time and the pool stay float32.
    """

    num_classes: int
    image_size: int = 64
    pool: str = "attention"
    model_channels: int = 128
    num_res_blocks: int = 2
    channel_mult: tuple[float, ...] = (1, 2, 3, 4)
    attention_downsamples: tuple[int, ...] = (2, 4, 8)
    num_heads: int = 4
    num_head_channels: int | None = 64
    attention_order: str = "legacy"
    scale_shift_norm: bool = True
    resblock_updown: bool = True
    conv_resample: bool = True
    dropout: float | tuple[float, ...] = 0.0
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    num_heads_upsample = None  # there is no decoder
    presets = PRESETS

    def setup(self) -> None:
        """The parts; those of the pool by its name."""
        plan = Plan.of(self)
        self.time_embedding = TimeEmbedding(self.model_channels)
        self.encoder = Encoder(plan)
        if not self.pool.startswith("spatial"):
            self.norm = group_norm()
        self.head = self._head(plan)

    def _head(self, plan: Plan) -> nn.Module:
        if self.pool == "attention":
            return AttentionPool(self.num_classes, plan)
        if self.pool == "adaptive":
            return nn.Dense(self.num_classes, kernel_init=initializers.zeros)
        return SpatialHead(self.num_classes, norm=self.pool == "spatial_v2")

    def __call__(self, x: jax.Array, t: jax.Array, condition: Condition | None = None) -> jax.Array:
        """Noisy images x (B, H, W, C), network times t (B,) -> logits (B, num_classes) float32; no condition is read.

        Raises:
            UserError: a field or an image size that the attributes above do not allow.
        """
        h, maps = self._maps(x, t)
        if self.pool == "attention":
            return self.head(self._normed(h))
        if self.pool == "adaptive":
            return self.head(self._normed(h).mean(axis=(1, 2)))
        means = [a.astype(jnp.float32).mean(axis=(1, 2)) for a in (*maps, h)]
        return self.head(jnp.concatenate(means, axis=-1))

    def features(self, x: jax.Array, t: jax.Array) -> jax.Array:
        """As `__call__`, but the last map (B, h, w, D) float32 before its pool, after norm and SiLU.

        The spatial pools do not normalize maps: for them it is the map itself.
        """
        h, _ = self._maps(x, t)
        return h.astype(jnp.float32) if self.pool.startswith("spatial") else self._normed(h)

    def _maps(self, x: jax.Array, t: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        self._check(*x.shape[1:3])
        return self.encoder(x.astype(self.dtype), self.time_embedding(t))

    def _normed(self, h: jax.Array) -> jax.Array:
        return nn.silu(self.norm(h))

    def _check(self, height: int, width: int) -> None:
        layers.check_choices(self, pool=POOLS)
        layers.require(self, lambda value: value > 0, "must be above 0", "num_classes", "image_size")
        Plan.of(self).check(height, width)
        if self.pool == "attention" and (height, width) != (self.image_size, self.image_size):
            raise UserError(
                "model.image_size",
                self.image_size,
                f"is not the size of images of {height}x{width}, and pool 'attention' takes no other; set it to their "
                "side, or choose another pool",
            )


class AttentionPool(nn.Module):
    """Attention from a map's mean to the map and its mean, in float32 (Radford et al. 2021, Sec. 2.4).

    Attributes:
        features: outputs.
        plan: says the number of heads.
    """

    features: int
    plan: Plan

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x (B, h, w, D) -> (B, features)."""
        b, height, width, d = x.shape
        x = x.reshape(b, height * width, d)
        x = jnp.concatenate([x.mean(axis=1, keepdims=True), x], axis=1)
        x = x + self.param("positions", nn.initializers.normal(d**-0.5), (height * width + 1, d))
        q, k, v = projected(x, 3, d, self.plan.heads(d), "new", jnp.float32, "qkv")
        q = q[:, :1]  # the mean alone attends
        sow_logit(self, q, k)
        h = attend(q, k, v).reshape(b, d)
        return nn.Dense(self.features, kernel_init=initializers.uniform, name="out")(h)


class SpatialHead(nn.Module):
    """A perceptron of the means of all maps, in float32: ReLU, or norm and SiLU, between two layers."""

    features: int
    norm: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x (B, D) -> (B, features)."""
        h = nn.Dense(HIDDEN, kernel_init=initializers.uniform, name="hidden")(x)
        h = nn.silu(group_norm("norm")(h)) if self.norm else nn.relu(h)
        return nn.Dense(self.features, kernel_init=initializers.uniform, name="out")(h)


build = ADMClassifier
