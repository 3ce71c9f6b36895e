"""One image: bytes, a file or an array -> a square uint8 array of the wanted size and channels; uint8 <-> float."""

from __future__ import annotations

import io
import pathlib
import struct
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from archirf_jax.errors import UserError

RawImage = bytes | pathlib.Path | np.ndarray  # an encoded image, its file, or (H, W, C) uint8
ValueRange = tuple[float, float]  # the levels in a file that are black and white
MODES = {1: "L", 3: "RGB"}
# Raster formats alone: Pillow hands PostScript to Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
# What Pillow raises, by format and by place of the damage.
UNREADABLE = (OSError, ValueError, SyntaxError, RuntimeError, struct.error, Image.DecompressionBombError)
HALF_A_LEVEL = 0.5 / 255
ORIENTATION, QUARTER_TURNS = 0x0112, 5  # the tag of cameras, and its first value that swaps the sides
MOST_PIXELS = 2**27  # of an image that is resized as a whole


def decode(image: RawImage, size: int, channels: int, value_range: ValueRange | None = None) -> np.ndarray:
    """An image of any size and mode as uint8 (size, size, channels).

    Camera orientation is applied, transparency is laid on white, the largest centred square is cut out and resized
    with an antialiasing (Lanczos) filter; an image that already has the size keeps its exact values.

    Args:
        image: encoded bytes, a path, or an array (H, W, 1 or 3) uint8.
        size: side in pixels.
        channels: 1 (grey) or 3 (RGB).
        value_range: levels lo < hi, which become 0 and 255; those between lie on a line, those outside are clipped.
            None = the format's own: 0 to 255 of 8 bits, 0 to 65535 of 16 and 32 bits, 0 to 1 of floats.

    Raises:
        OSError, ValueError, SyntaxError, RuntimeError, struct.error, Image.DecompressionBombError: what Pillow says of
            an unreadable file; also not a regular file, not a raster format, or levels out of range.
        UserError: other channels.
    """
    pil_image = _converted(image, channels, value_range)
    side = min(pil_image.size)
    if pil_image.size != (side, side):
        left, top = (pil_image.width - side) // 2, (pil_image.height - side) // 2
        pil_image = pil_image.crop((left, top, left + side, top + side))
    if side != size:
        pil_image = pil_image.resize((size, size), Image.Resampling.LANCZOS)
    return np.asarray(pil_image).reshape(size, size, channels)


class Cut(NamedTuple):
    """A part of an image that was resized as a whole; heights come before widths.

    Attributes:
        pixels: (height, width, C) uint8.
        original: sides before the resizing.
        resized: sides after it.
        corner: top and left of the part, in pixels of the resized image.
    """

    pixels: np.ndarray
    original: tuple[int, int]
    resized: tuple[int, int]
    corner: tuple[int, int]


def cut(
    image: RawImage,
    sides: tuple[int, int],
    channels: int,
    value_range: ValueRange | None = None,
    rng: np.random.Generator | None = None,
) -> Cut:
    """A part of an image that is resized to just cover it, as SDXL's are (Podell et al. 2023, Sec. 2.2).

    Args:
        image, channels, value_range: as of `decode`, as are filter and modes.
        sides: height and width of the part.
        rng: draws where it lies, evenly; None = in the middle.

    Raises:
        as `decode`; also ValueError for an image so narrow that it would become too large.
    """
    pil_image = _converted(image, channels, value_range)
    original = pil_image.height, pil_image.width
    resized = covering(original, sides)
    if resized[0] * resized[1] > MOST_PIXELS:
        raise ValueError(f"its sides {original} are so unequal that it would be resized to {resized}")
    if resized != original:
        pil_image = pil_image.resize(resized[::-1], Image.Resampling.LANCZOS)
    spare = [whole - part for whole, part in zip(resized, sides, strict=True)]
    top, left = (each // 2 if rng is None else int(rng.integers(each + 1)) for each in spare)
    pil_image = pil_image.crop((left, top, left + sides[1], top + sides[0]))
    return Cut(np.asarray(pil_image).reshape(*sides, channels), original, resized, (top, left))


def sides_of(image: RawImage) -> tuple[int, int]:
    """Height and width of an image as a person sees it; where the format allows, its header alone is read.

    Raises:
        as `decode`.
    """
    if isinstance(image, np.ndarray):
        return image.shape[0], image.shape[1]
    with _file(image) as opened:
        turned = opened.getexif().get(ORIENTATION, 1) >= QUARTER_TURNS
        return (opened.width, opened.height) if turned else (opened.height, opened.width)


def covering(original: tuple[int, int], sides: tuple[int, int]) -> tuple[int, int]:
    """Height and width of the smallest image of the same proportions, to a pixel, that covers `sides`."""
    scale = max(side / whole for side, whole in zip(sides, original, strict=True))
    height, width = (max(side, round(whole * scale)) for side, whole in zip(sides, original, strict=True))
    return height, width


def check_channels(channels: int) -> None:
    """Raise a UserError if no image has so many channels."""
    if channels not in MODES:
        raise UserError("data.channels", channels, "must be 1 (grey) or 3 (RGB)")


def read_image(
    image: RawImage, size: int, channels: int, field: str, value_range: ValueRange | None = None
) -> np.ndarray:
    """`decode` as float32 in [-1, 1], for an image that a user named.

    Raises:
        UserError: about `field`: no such file, or not readable; other channels.
    """
    check_channels(channels)
    try:
        return to_float(decode(image, size, channels, value_range))
    except UNREADABLE as e:
        name = f"{str(image)!r} " if isinstance(image, pathlib.Path) else ""
        raise UserError(field, message=f"{name}is not a readable image: {' '.join(str(e).split())}") from e


def to_float(images: Any) -> Any:
    """uint8 0..255 -> float32 [-1, 1], of numpy or JAX arrays alike."""
    # In this order -1 and 1 come out exactly, also where XLA multiplies by the reciprocal.
    return (images.astype(np.float32) - 127.5) / 127.5


def to_uint8(images: Any) -> np.ndarray:
    """Images around [-1, 1] -> uint8, rounded and cut to 0..255."""
    return np.clip(np.round((np.asarray(images, np.float32) + 1) * 127.5), 0, 255).astype(np.uint8)


def _converted(image: RawImage, channels: int, value_range: ValueRange | None) -> Any:
    """The whole image as a Pillow image of 8 bits and so many channels."""
    check_channels(channels)
    pil_image = _opened(image)
    pil_image = _eight_bits(pil_image) if value_range is None else _ranged(pil_image, channels, *value_range)
    return _on_white(pil_image).convert(MODES[channels])


def _opened(image: RawImage) -> Any:
    if isinstance(image, np.ndarray):
        return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    with _file(image) as opened:
        return ImageOps.exif_transpose(opened)


def _file(image: bytes | pathlib.Path) -> Any:
    if isinstance(image, pathlib.Path) and not image.is_file():
        raise OSError("it is not a regular file" if image.exists() else "there is no such file")
    return Image.open(io.BytesIO(image) if isinstance(image, bytes) else image, formats=FORMATS)


def _eight_bits(pil_image: Any) -> Any:
    """16-bit and 32-bit greys as 8-bit grey; Pillow's own conversion would clip them."""
    if not pil_image.mode.startswith(("I", "F")):
        return pil_image
    values = np.asarray(pil_image, np.float64)
    top = 65535.0 if pil_image.mode.startswith("I") else 1.0
    least, most = values.min() / top, values.max() / top
    # 32-bit integers are often 8-bit levels in a larger type, which would all become black.
    too_dark = pil_image.mode == "I" and 0 < most < 256 / top
    if not (-HALF_A_LEVEL <= least and most <= 1 + HALF_A_LEVEL) or too_dark:
        raise ValueError(
            f"its levels lie between {values.min():g} and {values.max():g}, where 0 is black and {top:g} is white; "
            "say by data.value_range=(lo, hi) which levels are black and white, or convert it to 8 bits"
        )
    return _grey(values / top)


def _ranged(pil_image: Any, channels: int, low: float, high: float) -> Any:
    """Levels from low to high as 8 bits."""
    if not pil_image.mode.startswith(("I", "F")):
        # Such as colours of 16 bits, of which Pillow reads the upper 8, or an 8-bit copy among pictures of 12 bits.
        if high - low > 2 * 255:
            raise ValueError(
                f"it is read as 8 bits, and levels 0 to 255 are less than half of data.value_range=({low:g}, {high:g})"
            )
        pil_image = _on_white(pil_image).convert(MODES[channels])
    values = np.asarray(pil_image, np.float64)
    if np.isnan(values).any():
        raise ValueError("it holds nan")
    return _grey((values - low) / (high - low))


def _grey(shares: np.ndarray) -> Any:
    """Shares of white (H, W) or (H, W, 3), cut to 0..1, as 8 bits."""
    return Image.fromarray(np.round(np.clip(shares, 0, 1) * 255).astype(np.uint8))


def _on_white(pil_image: Any) -> Any:
    if "transparency" not in pil_image.info and "A" not in pil_image.getbands():
        return pil_image
    pil_image = pil_image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", pil_image.size, "white"), pil_image)
