"""The two halves of ADM's U-Net (Dhariwal & Nichol 2021, Sec. 3), and what the blocks of one network share.

Levels count from the finest: level l sees the image 2^l times smaller.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from archirf_jax.errors import UserError, nearest
from archirf_jax.models import layers
from archirf_jax.models.adm_layers import GROUPS, ORDERS, Attention, ResBlock, Text, conv, doubled, halved


@dataclasses.dataclass(frozen=True)
class Plan:
    """What the blocks of one network share; the fields are described in `adm_unet.ADMUNet`."""

    model_channels: int
    num_res_blocks: int
    channel_mult: tuple[float, ...]
    attention_downsamples: tuple[int, ...]
    num_heads: int
    num_head_channels: int | None
    num_heads_upsample: int | None
    attention_order: str
    scale_shift_norm: bool
    resblock_updown: bool
    conv_resample: bool
    dropout: float | tuple[float, ...]
    dtype: Any
    remat: bool

    @classmethod
    def of(cls, model: nn.Module) -> Plan:
        """The fields of a network."""
        return cls(**{field.name: getattr(model, field.name) for field in dataclasses.fields(cls)})

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        # Rounded first: 96 / 36 * 36 may fall a last bit below 96.
        return tuple(int(round(mult * self.model_channels, 6)) for mult in self.channel_mult)

    def attends(self, level: int) -> bool:
        """Whether attention follows the residual blocks of a level."""
        return 2**level in self.attention_downsamples

    def heads(self, width: int, up: bool = False) -> int:
        """Attention heads at a width; `up`: in the decoder.

        Raises:
            UserError: the width does not divide into them.
        """
        field, size = "num_head_channels", self.num_head_channels
        if size is None:
            field = "num_heads_upsample" if up and self.num_heads_upsample is not None else "num_heads"
            size = int(getattr(self, field))
        if size < 1 or width % size:
            raise UserError(f"model.{field}", size, f"does not divide {width} channels; choose a divisor of them")
        return size if field != "num_head_channels" else width // size

    def block(self, level: int, width: int, name: str, direction: str = "") -> ResBlock:
        """A residual block to `width` channels; only inside a compact module."""
        dropout = self.dropout[level] if isinstance(self.dropout, tuple) else self.dropout
        make = nn.remat(ResBlock) if self.remat else ResBlock
        return make(width, self.scale_shift_norm, dropout, direction, self.dtype, name=name)

    def attention(self, width: int, name: str, up: bool = False) -> Attention:
        """Attention of maps with `width` channels; only inside a compact module."""
        make = nn.remat(Attention) if self.remat else Attention
        return make(self.heads(width, up), self.attention_order, self.dtype, name=name)

    def resample(self, level: int, h: jax.Array, emb: jax.Array, direction: str) -> jax.Array:
        """A map of `level` half ("down") or twice ("up") as large; only inside a compact module."""
        name = f"{direction}_{level}_resample"
        if self.resblock_updown:
            return self.block(level, h.shape[-1], name, direction)(h, emb)
        if not self.conv_resample:
            return halved(h) if direction == "down" else doubled(h)
        if direction == "down":
            return conv(h.shape[-1], self.dtype, name, stride=2)(h)
        return conv(h.shape[-1], self.dtype, name)(doubled(h))

    def check(self, height: int, width: int) -> None:
        """Raise a UserError for fields out of their range, or images that do not halve often enough."""
        self._check_numbers()
        levels = len(self.channel_mult)
        for channels in self.widths:
            if channels < 1 or channels % GROUPS:
                gives = f"times model_channels={self.model_channels} gives {channels} channels"
                must = f"{gives}, which must be a multiple of {GROUPS}"
                raise UserError("model.channel_mult", self.channel_mult, must)
        for factor in self.attention_downsamples:
            if factor not in [2**level for level in range(levels)]:
                choices = ", ".join(str(2**level) for level in range(levels))
                message = f"is not a downsampling of {levels} levels; choose from {choices}"
                raise UserError("model.attention_downsamples", factor, message)
        if height % 2 ** (levels - 1) or width % 2 ** (levels - 1):
            raise UserError(
                "model.channel_mult",
                self.channel_mult,
                f"halves the image {levels - 1} times, which an image of {height}x{width} does not allow; both sides "
                f"must be multiples of {2 ** (levels - 1)}",
            )

    def _check_numbers(self) -> None:
        for name in ("model_channels", "num_res_blocks"):
            if getattr(self, name) < 1:
                raise UserError(f"model.{name}", getattr(self, name), "must be above 0")
        layers.check_most(self, "model_channels", "num_res_blocks")
        if self.model_channels % 2:
            raise UserError("model.model_channels", self.model_channels, "must be even")
        if not self.channel_mult:
            raise UserError("model.channel_mult", self.channel_mult, "must name one level or more")
        if (order := self.attention_order) not in ORDERS:
            message = f"is not one of {', '.join(ORDERS)}{nearest(order, ORDERS)}"
            raise UserError("model.attention_order", order, message)
        levels = len(self.channel_mult)
        rates = self.dropout if isinstance(self.dropout, tuple) else (self.dropout,) * levels
        if len(rates) != levels or not all(0 <= rate < 1 for rate in rates):
            message = f"must be one rate in [0, 1), or one for each of {levels} levels"
            raise UserError("model.dropout", self.dropout, message)


class Encoder(nn.Module):
    """The half of the network that shrinks the image, and its middle."""

    plan: Plan

    @nn.compact
    def __call__(self, x: jax.Array, emb: jax.Array, text: Text | None = None) -> tuple[jax.Array, list[jax.Array]]:
        """Images (B, H, W, C), embedding (B, E) -> the last map, and all maps on the way, which the decoder takes.

        Every attention reads the text, if there is one.
        """
        plan = self.plan
        h = conv(plan.widths[0], plan.dtype, "input")(x)
        maps = [h]
        for level, width in enumerate(plan.widths):
            for i in range(plan.num_res_blocks):
                h = plan.block(level, width, f"down_{level}_block_{i}")(h, emb)
                if plan.attends(level):
                    h = plan.attention(width, f"down_{level}_attention_{i}")(h, text)
                maps.append(h)
            if level + 1 < len(plan.widths):
                h = plan.resample(level, h, emb, "down")
                maps.append(h)
        h = plan.block(level, width, "middle_block_0")(h, emb)
        h = plan.attention(width, "middle_attention")(h, text)
        return plan.block(level, width, "middle_block_1")(h, emb), maps


class Decoder(nn.Module):
    """The half of the network that grows the image again."""

    plan: Plan

    @nn.compact
    def __call__(self, h: jax.Array, maps: list[jax.Array], emb: jax.Array, text: Text | None = None) -> jax.Array:
        """The encoder's last map and its maps on the way, embedding (B, E), text as there -> (B, H, W, D)."""
        plan, maps = self.plan, list(maps)
        for level, width in reversed(list(enumerate(plan.widths))):
            for i in range(plan.num_res_blocks + 1):
                h = jnp.concatenate([h, maps.pop()], axis=-1)
                h = plan.block(level, width, f"up_{level}_block_{i}")(h, emb)
                if plan.attends(level):
                    h = plan.attention(width, f"up_{level}_attention_{i}", up=True)(h, text)
            if level:
                h = plan.resample(level, h, emb, "up")
        return h
