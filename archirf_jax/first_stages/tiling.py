"""A map of images computed tile by tile, where memory is short: tiles overlap, and each fades into the next.

Near an edge that is not the image's a network sees zeros in place of what lies beyond. The outer quarter of an overlap
(HALO) is therefore thrown away, and over the middle half one tile's weight falls linearly from 1 to 0 while the other's
rises.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

HALO = 0.25  # share of an overlap in which a tile does not count


class Axis(NamedTuple):
    """How tiles lie along one axis.

    Attributes:
        starts: first cell of each tile.
        side: cells of a tile.
        weights: (tiles, side * pixels) float32 of every pixel of a tile; those of all tiles at one pixel add up to 1.
    """

    starts: np.ndarray
    side: int
    weights: np.ndarray


def axis(cells: int, tile: int, overlap: int, pixels: int = 1) -> Axis:
    """Tiles along an axis.

    Args:
        cells: along the axis, in latent pixels.
        tile: cells of a tile; the axis is one tile if it is not longer.
        overlap: cells that neighbours share at least, 1 or more and below `tile`; the last tile ends with the axis, and
            may share more.
        pixels: of the result, a cell.
    """
    side = min(tile, cells)
    starts = np.append(np.arange(0, cells - side, max(side - overlap, 1)), cells - side)
    centre = (np.arange(side * pixels) + 0.5) / pixels  # in cells, from the tile's first edge
    weights = np.ones((len(starts), side * pixels))
    for i, start in enumerate(starts):
        for inside, distance in ((start > 0, centre), (start + side < cells, side - centre)):
            if inside:
                weights[i] *= np.clip((distance / overlap - HALO) / (1 - 2 * HALO), 0, 1)
    total = np.zeros(cells * pixels)
    for start, each in zip(starts, weights, strict=True):
        total[start * pixels :][: side * pixels] += each
    share = [each / total[start * pixels :][: side * pixels] for start, each in zip(starts, weights, strict=True)]
    return Axis(starts, side, np.asarray(share, np.float32))


def tiled(
    compute: Callable[[jax.Array], jax.Array], x: jax.Array, tile: int | None, overlap: int, before: int = 1
) -> jax.Array:
    """`compute(x)`, one tile at a time.

    It is the same, to rounding, where no pixel of the result depends on what is more than HALO * overlap cells away. A
    constant result stays constant whatever it depends on.

    Args:
        compute: x (B, h * before, w * before, C) -> (B, h * after, w * after, D), for any sides h and w in cells.
        x: as `compute` takes it.
        tile: side of a tile in cells, the latents' pixels; None = one tile, and then it is `compute(x)` itself.
        overlap: cells that neighbouring tiles share, as in `axis`.
        before: side of a cell in pixels of x: 1 to decode, the autoencoder's factor to encode.
    """
    height, width = (side // before for side in x.shape[1:3])
    if tile is None or max(height, width) <= tile:
        return compute(x)
    whole = jax.eval_shape(compute, x)
    after = whole.shape[1] // height
    rows, columns = (axis(cells, tile, overlap, after) for cells in (height, width))

    def add(total: jax.Array, each: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        row, column, down, across = each
        size = (len(x), rows.side * before, columns.side * before, x.shape[-1])
        made = compute(jax.lax.dynamic_slice(x, (0, row * before, column * before, 0), size))
        start = (0, row * after, column * after, 0)
        sum_ = jax.lax.dynamic_slice(total, start, made.shape) + made * down[:, None, None] * across[:, None]
        return jax.lax.dynamic_update_slice(total, sum_, start), None

    i, j = np.indices((len(rows.starts), len(columns.starts))).reshape(2, -1)
    each = (rows.starts[i], columns.starts[j], rows.weights[i], columns.weights[j])
    return jax.lax.scan(add, jnp.zeros(whole.shape, whole.dtype), jax.tree.map(jnp.asarray, each))[0]
