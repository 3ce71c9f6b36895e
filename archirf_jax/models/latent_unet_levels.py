"""The levels of latent diffusion's U-Net, from the fields of the network, which are checked here."""

from __future__ import annotations

import dataclasses
from typing import Any

from archirf_jax.errors import UserError
from archirf_jax.models import layers

Each = int | bool | tuple[Any, ...]  # one value for all levels, or one a level


@dataclasses.dataclass(frozen=True)
class Level:
    """Attributes:
    width: channels.
    blocks: residual blocks on the way down; there is one more on the way up.
    depth: transformer blocks after each residual block; 0 = no transformer.
    num_heads: of attention.
    only_cross_attention: whether transformers read nothing but the text.
    """

    width: int
    blocks: int
    depth: int
    num_heads: int
    only_cross_attention: bool


def levels_of(model: Any) -> tuple[Level, ...]:
    """The levels of a `latent_unet.LatentUNet`, from the finest; the last one's heads are the middle's as well.

    Raises:
        UserError: fields out of their range, or that do not fit together.
    """
    widths = model.block_out_channels
    if not widths:
        raise UserError("model.block_out_channels", widths, "must name one level or more")
    _check_widths(widths, model.norm_num_groups)
    blocks, depths = each(model, "layers_per_block"), each(model, "transformer_depth")
    only = each(model, "only_cross_attention")
    _check_range("layers_per_block", blocks, 1)
    _check_range("transformer_depth", depths, 0)
    return tuple(map(Level, widths, blocks, depths, _heads(model, depths), map(bool, only)))


def each(model: Any, field: str) -> tuple[Any, ...]:
    """The values of a field, one a level.

    Raises:
        UserError: it names more levels or fewer than there are.
    """
    value, levels = getattr(model, field), len(model.block_out_channels)
    values = tuple(value) if isinstance(value, tuple | list) else (value,) * levels
    if len(values) != levels:
        raise UserError(f"model.{field}", value, f"must be one value, or one for each of the {levels} levels")
    return values


def _check_widths(widths: tuple[int, ...], groups: int) -> None:
    if groups < 1:
        raise UserError("model.norm_num_groups", groups, "must be above 0")
    for width in widths:
        if not 1 <= width <= layers.WIDEST or width % groups:
            rule = f"must be multiples of norm_num_groups={groups}, and at most {layers.WIDEST}"
            raise UserError("model.block_out_channels", widths, rule)
    if widths[0] % 2:
        raise UserError("model.block_out_channels", widths, "must begin with an even number")


def _check_range(field: str, values: tuple[int, ...], least: int) -> None:
    if not all(least <= value <= layers.DEEPEST for value in values):
        raise UserError(f"model.{field}", values, f"must lie in {least} to {layers.DEEPEST}")


def _heads(model: Any, depths: tuple[int, ...]) -> tuple[int, ...]:
    """Heads of every level; those of levels without attention need not fit."""
    size = model.num_head_channels
    values = each(model, "num_heads") if size is None else (size,) * len(depths)
    field = "num_heads" if size is None else "num_head_channels"
    attending = [depth > 0 for depth in depths[:-1]] + [True]  # the middle has the last level's heads
    for width, value, attends in zip(model.block_out_channels, values, attending, strict=True):
        if attends and (value < 1 or width % value):
            rule = f"does not divide {width} channels; choose a divisor of them"
            raise UserError(f"model.{field}", value, rule)
    if size is None:
        return values
    return tuple(max(1, width // size) for width in model.block_out_channels)
