"""Images as files: grids, PNG and GIF."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from einops import rearrange
from PIL import Image, ImageDraw, ImageFont

from archirf_jax.errors import UserError
from archirf_jax.files import atomic_write

TILE = 40  # pixels that a tiny image is enlarged to
MAX_FRAMES = 30
FONT, LONGEST = 12, 40  # pixels of the letters of names, and letters of the longest
LARGEST_SIDE = 65_535  # pixels of a GIF


def grid(images: np.ndarray, names: Sequence[str] = ()) -> np.ndarray:
    """(rows, columns, H, W, C) uint8 -> one image, tiny images enlarged by whole pixels, one white pixel between.

    Args:
        images: 1 or 3 channels.
        names: of the rows, written to the left of them; none where there are no names.
    """
    scale = max(1, TILE // max(images.shape[2:4]))
    images = images.repeat(scale, axis=2).repeat(scale, axis=3)
    framed = np.pad(images, [(0, 0), (0, 0), (0, 1), (0, 1), (0, 0)], constant_values=255)
    whole = rearrange(framed, "r s h w c -> (r h) (s w) c")[:-1, :-1]
    return np.concatenate([_margin(names, framed.shape[2], whole), whole], axis=1) if names else whole


def _margin(names: Sequence[str], height: int, whole: np.ndarray) -> np.ndarray:
    """The names of rows of this height, black on white, as wide as the longest of them."""
    texts = [name if len(name) <= LONGEST else f"{name[: LONGEST - 3]}..." for name in names]
    font = ImageFont.load_default(FONT)
    width = max(round(font.getlength(text)) for text in texts) + FONT
    drawn = Image.new("L", (width, whole.shape[0]), 255)
    for row, text in enumerate(texts):
        middle = row * height + height // 2
        ImageDraw.Draw(drawn).text((width - FONT // 2, middle), text, fill=0, font=font, anchor="rm")
    return np.repeat(np.asarray(drawn)[..., None], whole.shape[-1], axis=-1)


def check_side(field: str, images: int, size: int) -> None:
    """Make sure, before anything is drawn, that a grid with so many images of `size` pixels a side can be written.

    Raises:
        UserError: about `field`; the formats of pictures end at LARGEST_SIDE.
    """
    most = LARGEST_SIDE // (size * max(1, TILE // size) + 1)
    if images > most:
        raise UserError(
            field, images, f"is more than the {most} images of {size} pixels that a picture has room for; take fewer"
        )


def save_png(image: np.ndarray, path: pathlib.Path) -> None:
    """Write one (H, W, 1 or 3) uint8 image, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, lambda file: as_pillow(image).save(file, "PNG"))


def save_gif(frames: Sequence[np.ndarray], path: pathlib.Path, seconds: float = 4.0) -> None:
    """Write one or more (H, W, 1 or 3) uint8 frames as an endless animation; the last one rests for a second more.

    Of more than MAX_FRAMES frames, evenly spaced ones are shown, the first and the last among them.
    """
    chosen = np.linspace(0, len(frames) - 1, min(len(frames), MAX_FRAMES)).round().astype(int)
    path.parent.mkdir(parents=True, exist_ok=True)
    each = max(20, round(1000 * seconds / len(chosen)))
    first, *rest = [as_pillow(frames[i]) for i in chosen]
    durations = [each] * len(rest) + [each + 1000]
    options: dict[str, Any] = dict(save_all=True, append_images=rest, duration=durations, loop=0)
    atomic_write(path, lambda file: first.save(file, "GIF", **options))


def load_png(path: pathlib.Path) -> np.ndarray:
    """An image written by `save_png`.

    Raises:
        OSError: anything else; other formats are not opened, and pipes are not waited for.
    """
    if not path.is_file():
        raise OSError("it is not a regular file")
    try:
        with Image.open(path, formats=("PNG",)) as opened:
            values = np.asarray(opened)
    except (ValueError, SyntaxError, Image.DecompressionBombError) as e:
        raise OSError(" ".join(str(e).split())) from e
    return values if values.ndim == 3 else values[..., None]


def as_pillow(image: np.ndarray) -> Image.Image:
    """A (H, W, 1 or 3) uint8 image as Pillow's image."""
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
