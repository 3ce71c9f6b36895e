"""Images as files: uint8 conversion, grids, PNG and GIF."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import numpy as np
from einops import rearrange
from PIL import Image

TILE = 40  # pixels that a tiny image is enlarged to
MAX_FRAMES = 30


def to_uint8(images: np.ndarray) -> np.ndarray:
    """Float images around [-1, 1] as uint8, clipped and rounded to the nearest level."""
    return np.clip(np.round((np.asarray(images, np.float32) + 1) * 127.5), 0, 255).astype(np.uint8)


def grid(images: np.ndarray) -> np.ndarray:
    """(rows, columns, H, W, C) uint8 -> one picture, tiny images enlarged by whole pixels, one white pixel between."""
    scale = max(1, TILE // max(images.shape[2:4]))
    images = images.repeat(scale, axis=2).repeat(scale, axis=3)
    framed = np.pad(images, [(0, 0), (0, 0), (0, 1), (0, 1), (0, 0)], constant_values=255)
    return rearrange(framed, "r s h w c -> (r h) (s w) c")[:-1, :-1]


def save_png(picture: np.ndarray, path: pathlib.Path) -> None:
    """Write one (H, W, 1 or 3) uint8 picture, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    _pillow(picture).save(part, "PNG")
    part.replace(path)


def save_gif(frames: Sequence[np.ndarray], path: pathlib.Path, seconds: float = 4.0) -> None:
    """Write one or more (H, W, 1 or 3) uint8 frames as an endless animation; the last one rests for a second more.

    Of more than MAX_FRAMES frames, evenly spaced ones are shown, the first and the last among them.
    """
    chosen = np.linspace(0, len(frames) - 1, min(len(frames), MAX_FRAMES)).round().astype(int)
    path.parent.mkdir(parents=True, exist_ok=True)
    each = max(20, round(1000 * seconds / len(chosen)))
    first, *rest = [_pillow(frames[i]) for i in chosen]
    durations = [each] * len(rest) + [each + 1000]
    part = path.with_suffix(".part")
    first.save(part, "GIF", save_all=True, append_images=rest, duration=durations, loop=0)
    part.replace(path)


def load_png(path: pathlib.Path) -> np.ndarray:
    """A picture written by `save_png`."""
    with Image.open(path) as picture:
        values = np.asarray(picture)
    return values if values.ndim == 3 else values[..., None]


def _pillow(picture: np.ndarray) -> Image.Image:
    return Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture)
