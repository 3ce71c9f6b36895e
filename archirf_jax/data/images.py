"""One image: bytes or file -> a square uint8 array of the wanted size and channels."""

from __future__ import annotations

import io
import pathlib
import struct
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from archirf_jax.errors import UserError

MODES = {1: "L", 3: "RGB"}
# What Pillow raises, by format and by place of the damage.
UNREADABLE = (OSError, ValueError, SyntaxError, RuntimeError, struct.error, Image.DecompressionBombError)


def decode(image: bytes | pathlib.Path, size: int, channels: int) -> np.ndarray:
    """A picture of any size and mode as uint8 (size, size, channels).

    Camera orientation is applied, transparency is laid on white, the largest centred square is cut out and resized
    with an antialiasing (Lanczos) filter; a picture that already has the size keeps its exact values.

    Args:
        image: encoded bytes or a path.
        size: side in pixels.
        channels: 1 (grey) or 3 (RGB).

    Raises:
        OSError, ValueError, SyntaxError, RuntimeError, struct.error, Image.DecompressionBombError: what Pillow says of
            an unreadable file.
    """
    with Image.open(io.BytesIO(image) if isinstance(image, bytes) else image) as opened:
        picture = ImageOps.exif_transpose(opened)
    picture = _on_white(_eight_bits(picture)).convert(MODES[channels])
    side = min(picture.size)
    if picture.size != (side, side):
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        picture = picture.crop((left, top, left + side, top + side))
    if side != size:
        picture = picture.resize((size, size), Image.Resampling.LANCZOS)
    return np.asarray(picture).reshape(size, size, channels)


def read_image(image: bytes | pathlib.Path, size: int, channels: int, flag: str) -> np.ndarray:
    """`decode` as float32 in [-1, 1], for a picture that a person named by a flag.

    Raises:
        UserError: no such file, or not readable.
    """
    try:
        return decode(image, size, channels).astype(np.float32) / 127.5 - 1
    except UNREADABLE as e:
        name = "the training image" if isinstance(image, bytes) else repr(str(image))
        raise UserError(f"--{flag}: {name} is no readable picture: {' '.join(str(e).split())}") from e


def _eight_bits(picture: Any) -> Any:
    """16-bit and 32-bit greys as 8-bit grey; Pillow's own conversion would clip them."""
    if not picture.mode.startswith(("I", "F")):
        return picture
    values = np.asarray(picture, np.float64)
    top = 65535.0 if picture.mode.startswith("I") else 1.0
    return Image.fromarray(np.round(np.clip(values / top, 0, 1) * 255).astype(np.uint8))


def _on_white(picture: Any) -> Any:
    if "transparency" not in picture.info and "A" not in picture.getbands():
        return picture
    picture = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
