"""EDM2's U-Net (Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models", config G,
Fig. 21): every layer keeps magnitudes, there are no biases, norms are not learned and weights have one length.

This is the raw network F, whose input a process has already scaled. A gain that starts at 0 stands at the end: the
output is exactly 0 at initialisation. Training calls `normalize_weights` at the start of each step.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from archirf_jax.contracts import Condition
from archirf_jax.errors import UserError
from archirf_jax.models import initializers, layers
from archirf_jax.models.attention import attend, sow_logit
from archirf_jax.models.magnitude import (
    MPConv,
    MPDense,
    MPFourier,
    MPSplit,
    double,
    halve,
    mp_concat,
    mp_silu,
    mp_sum,
    normalized,
    with_unit_weights,
)

# Karras et al. 2024, Table 6; all else is the default. "tiny" is this project's own, for 8x8 to 32x32 on a CPU.
PRESETS: dict[str, dict[str, Any]] = {
    "tiny": dict(model_channels=32, channel_mult=(1, 2), num_blocks=1, attention_levels=(1,), channels_per_head=32),
    "XS": dict(model_channels=128),
    "S": dict(model_channels=192),
    "M": dict(model_channels=256),
    "L": dict(model_channels=320),
    "XL": dict(model_channels=384),
    "XXL": dict(model_channels=448),
}
RESAMPLING = {"": lambda x, taps: x, "down": halve, "up": double}


class Block(nn.Module):
    """A residual branch conditioned on the embedding, then self-attention (Karras et al. 2024, Fig. 21).

    Attributes:
        features: channels that come out.
        encoder: normalise each pixel before the branch.
        resample: "down" halves, "up" doubles the image first; "" leaves it.
        heads: of the attention; 0 = there is none.
        others: as in `EDM2UNet`.
    """

    features: int
    encoder: bool = False
    resample: str = ""
    heads: int = 0
    resample_filter: tuple[float, ...] = (1, 1)
    dropout: float = 0.0
    res_balance: float = 0.3
    attn_balance: float = 0.3
    clip_act: float | None = 256.0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, emb: jax.Array) -> jax.Array:
        """Images x (B, H, W, C), embeddings (B, E) float32 -> (B, H', W', features)."""
        x = RESAMPLING[self.resample](x, self.resample_filter)
        skip = x if x.shape[-1] == self.features else MPDense(self.features, self.dtype, name="skip")(x)
        if self.encoder:
            x = skip = normalized(skip).astype(self.dtype)
        x = mp_sum(skip, self._branch(x, emb), self.res_balance)
        if self.heads:
            x = mp_sum(x, self._attention(x), self.attn_balance)
        return jnp.clip(x, -self.clip_act, self.clip_act) if self.clip_act is not None else x

    def _branch(self, x: jax.Array, emb: jax.Array) -> jax.Array:
        h = MPConv(self.features, dtype=self.dtype, name="conv_0")(mp_silu(x))
        gain = self.param("embedding_gain", initializers.zeros, ())
        scale = 1 + MPDense(self.features, name="embedding")(emb, gain)  # (B, features)
        h = mp_silu(h * scale[:, None, None].astype(self.dtype))
        h = nn.Dropout(self.dropout)(h, deterministic=not self.has_rng("dropout"))
        return MPConv(self.features, dtype=self.dtype, name="conv_1")(h)

    def _attention(self, x: jax.Array) -> jax.Array:
        b, rows, columns, d = x.shape
        parts, shape = MPSplit(3 * d, 3, self.dtype, name="qkv")(x), (b, rows * columns, self.heads, d // self.heads)
        q, k, v = (normalized(part.reshape(shape)).astype(self.dtype) for part in parts)
        sow_logit(self, q, k)
        return MPDense(d, self.dtype, name="out")(attend(q, k, v).reshape(x.shape))


class EDM2UNet(nn.Module, layers.Presets):
    """Magnitude-preserving U-Net.

    Level l works on images of the height and width of the input over 2^l.

    Attributes:
        num_classes: labels are 0..num_classes-1, the null label is num_classes and adds nothing to the embedding. May
            be None where class_conditional is False.
        class_conditional: False = labels are ignored.
        model_channels: unit of all widths.
        channel_mult: width of each level in units of model_channels.
        num_blocks: blocks of each level of the encoder; a level of the decoder has one more.
        attention_levels: whose blocks attend; published for 64x64: those of 16x16 and 8x8.
        middle_attention: let the decoder's very first block attend, as published.
        channels_per_head: a level of width C has C // channels_per_head heads, which must divide C.
        channel_mult_noise: random features of time, in units of model_channels; None = the width of the first level.
        channel_mult_emb: width of the embedding in units of model_channels; None = as wide as the widest level.
        label_balance: share of the label in the embedding, 0 to 1.
        concat_balance: share of the encoder's channels where the decoder takes them in.
        res_balance: share of the residual branch in a block.
        attn_balance: share of the attention.
        clip_act: largest activation after a block; None = any.
        resample_filter: an even number of weights.
        dropout: share of a branch's activations that are dropped, where an rng "dropout" is given.
        time_scale: what network times are divided by; 1 for ln(sigma) / 4, 1000 for times up to 1000.
        dtype: compute dtype; embeddings, norms, softmax and the last layer stay float32.
        remat: keep no activations of blocks for the backward pass.
    """

    num_classes: int | None = None
    class_conditional: bool = True
    model_channels: int = 192
    channel_mult: tuple[int, ...] = (1, 2, 3, 4)
    num_blocks: int = 3
    attention_levels: tuple[int, ...] = (2, 3)
    middle_attention: bool = True
    channels_per_head: int = 64
    channel_mult_noise: int | None = None
    channel_mult_emb: int | None = None
    label_balance: float = 0.5
    concat_balance: float = 0.5
    res_balance: float = 0.3
    attn_balance: float = 0.3
    clip_act: float | None = 256.0
    resample_filter: tuple[float, ...] = (1, 1)
    dropout: float = 0.0
    time_scale: float = 1.0
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    presets = PRESETS

    @nn.compact
    def __call__(self, x: jax.Array, t: jax.Array, condition: Condition) -> jax.Array:
        """Scaled images x (B, H, W, C), network times t (B,), "label" (B,) int32 -> (B, H, W, C) float32.

        Raises:
            UserError: a size that does not divide as the attributes above say, a value out of its range, no label.
        """
        self._check(*x.shape[1:3])
        emb, channels = self._embedding(t, condition), x.shape[-1]
        # The channel of ones stands in for biases.
        x = jnp.concatenate([x, jnp.ones((*x.shape[:-1], 1), x.dtype)], axis=-1)
        x = self._decoder(*self._encoder(x, emb), emb)
        gain = self.param("out_gain", initializers.zeros, ())
        return MPConv(channels, name="out_conv")(x.astype(jnp.float32), gain)

    @nn.nowrap
    def normalize_weights(self, params: Any) -> Any:
        """Forced weight normalization: unit weights, which make the same function but for the paper's eps."""
        return with_unit_weights(params)

    @nn.nowrap
    def sizes(self, trained: tuple[int, int]) -> tuple[int, int | None]:
        """What sides of images are multiples of, and the largest side after training at `trained`; None = any."""
        del trained
        return 2 ** (len(self.channel_mult) - 1), None

    def _embedding(self, t: jax.Array, condition: Condition) -> jax.Array:
        noise = self.model_channels * (self.channel_mult_noise or 0) or self._widths[0]
        width = self.model_channels * (self.channel_mult_emb or 0) or max(self._widths)
        emb = MPDense(width, name="noise_embedding")(MPFourier(noise, name="time_features")(t / self.time_scale))
        if self.class_conditional:
            assert self.num_classes is not None, "checked"
            # Rows of mean square 1 for labels, of zeros for the null label.
            rows = jax.nn.one_hot(layers.entry(condition, "label"), self.num_classes) * self.num_classes**0.5
            emb = mp_sum(emb, MPDense(width, name="label_embedding")(rows), self.label_balance)
        return mp_silu(emb)  # (B, E) float32

    def _encoder(self, x: jax.Array, emb: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        x = MPConv(self._widths[0], dtype=self.dtype, name="enc_0_conv")(x)
        skips = [x]
        for level, width in enumerate(self._widths):
            if level:
                down = self._block(x.shape[-1], encoder=True, resample="down", name=f"enc_{level}_down")
                skips.append(down(x, emb))
            for i in range(self.num_blocks):
                heads = self._heads(width) if level in self.attention_levels else 0
                block = self._block(width, encoder=True, heads=heads, name=f"enc_{level}_block{i}")
                skips.append(block(skips[-1], emb))
            x = skips[-1]
        return x, skips

    def _decoder(self, x: jax.Array, skips: list[jax.Array], emb: jax.Array) -> jax.Array:
        last = len(self._widths) - 1
        for level, width in reversed(list(enumerate(self._widths))):
            if level == last:
                heads = self._heads(x.shape[-1]) if self.middle_attention else 0
                x = self._block(x.shape[-1], heads=heads, name=f"dec_{level}_in0")(x, emb)
                x = self._block(x.shape[-1], name=f"dec_{level}_in1")(x, emb)
            else:
                x = self._block(x.shape[-1], resample="up", name=f"dec_{level}_up")(x, emb)
            for i in range(self.num_blocks + 1):
                heads = self._heads(width) if level in self.attention_levels else 0
                x = mp_concat(x, skips.pop(), self.concat_balance)
                x = self._block(width, heads=heads, name=f"dec_{level}_block{i}")(x, emb)
        return x

    def _block(self, features: int, **fields: Any) -> Block:
        block = nn.remat(Block) if self.remat else Block
        shared = ("resample_filter", "dropout", "res_balance", "attn_balance", "clip_act", "dtype")
        return block(features, **{name: getattr(self, name) for name in shared}, **fields)

    @property
    def _widths(self) -> list[int]:
        return [self.model_channels * times for times in self.channel_mult]

    def _heads(self, width: int) -> int:
        heads = width // self.channels_per_head
        if not heads or width % heads:
            message = f"makes {heads} heads of {width} channels; choose a divisor of the width of levels that attend"
            raise UserError("model.channels_per_head", self.channels_per_head, message)
        return heads

    def _check(self, height: int, width: int) -> None:
        levels, conditional, require = len(self.channel_mult), self.class_conditional, layers.require
        if conditional and self.num_classes is None:
            message = "must be given; without labels, set model.class_conditional to False"
            raise UserError("model.num_classes", self.num_classes, message)
        positive = ("model_channels", "channels_per_head", "time_scale", *("num_classes",) * conditional)
        multiples = ("channel_mult_noise", "channel_mult_emb", "clip_act")
        require(self, lambda value: value > 0, "must be above 0", *positive, *multiples)
        require(self, lambda value: value >= 0, "must be 0 or more", "num_blocks")
        layers.check_most(self, "model_channels", "num_blocks")
        balances = ("label_balance", "concat_balance", "res_balance", "attn_balance")
        require(self, lambda value: 0 <= value <= 1, "must be 0 to 1", *balances)
        require(self, lambda value: 0 <= value < 1, "must be 0 or more and below 1", "dropout")
        require(self, lambda value: value and min(value) > 0, "must be one or more numbers above 0", "channel_mult")
        inside = f"must be levels 0 to {levels - 1}, as channel_mult has {levels}"
        require(self, lambda value: all(0 <= level < levels for level in value), inside, "attention_levels")
        usable = "must be an even number of weights whose sum is not 0"
        require(self, lambda taps: taps and len(taps) % 2 == 0 and sum(taps) != 0, usable, "resample_filter")
        step = 2 ** (levels - 1)
        if height % step or width % step:
            message = f"needs image sides that are multiples of {step}, not {height}x{width}; take fewer levels"
            raise UserError("model.channel_mult", self.channel_mult, message)


build = EDM2UNet
