"""Laws of images in files: levels, places in a grid, and files that give back what was written."""

from __future__ import annotations

import os
import pathlib
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageSequence

from archirf_jax.data.images import to_uint8
from archirf_jax.errors import UserError
from archirf_jax.visuals import pictures

RANDOM = np.random.default_rng(0)


def film(path: pathlib.Path) -> tuple[np.ndarray, list[int]]:
    """The frames of an animation, (N, H, W, 3), and how many milliseconds each stays."""
    frames, durations = [], []
    with Image.open(path) as opened:
        for frame in ImageSequence.Iterator(opened):
            frames.append(np.asarray(frame.convert("RGB")))
            durations.append(frame.info.get("duration", 0))
    return np.stack(frames), durations


def test_all_levels_survive_the_way_through_float() -> None:
    levels = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(to_uint8(levels / np.float32(127.5) - 1), levels)


def test_floats_go_to_the_nearest_level() -> None:
    levels = np.arange(1, 255)
    for offset in (-0.49, 0.49):
        np.testing.assert_array_equal(to_uint8((levels + offset) / 127.5 - 1), levels)


def test_floats_outside_the_range_are_clipped() -> None:
    out = to_uint8(np.asarray([-np.inf, -7.0, -1.0, 1.0, 1.01, 100.0, np.inf]))
    assert out.dtype == np.uint8
    np.testing.assert_array_equal(out, [0, 0, 0, 255, 255, 255, 255])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width", "scale"), [(8, 8, 5), (4, 20, 2), (30, 30, 1), (41, 50, 1)])
def test_a_grid_shows_each_image_in_its_place_enlarged_by_whole_pixels(
    height: int, width: int, scale: int, channels: int
) -> None:
    images = RANDOM.integers(0, 255, size=(2, 3, height, width, channels), dtype=np.uint8)
    image = pictures.grid(images)
    down, across = height * scale + 1, width * scale + 1  # one white pixel between
    assert image.shape == (2 * down - 1, 3 * across - 1, channels) and image.dtype == np.uint8
    for r in range(2):
        for c in range(3):
            tile = image[r * down : (r + 1) * down - 1, c * across : (c + 1) * across - 1]
            np.testing.assert_array_equal(tile, np.kron(images[r, c], np.ones((scale, scale, 1), np.uint8)))
    np.testing.assert_array_equal(image[down - 1], np.full_like(image[down - 1], 255))
    np.testing.assert_array_equal(image[:, across - 1], np.full_like(image[:, across - 1], 255))


@pytest.mark.parametrize(("size", "most"), [(8, 1598), (40, 1598), (64, 1008)])
def test_the_widest_grid_that_is_allowed_can_be_written(size: int, most: int, tmp_path: pathlib.Path) -> None:
    pictures.check_side("per_class", most, size)
    with pytest.raises(UserError) as caught:
        pictures.check_side("per_class", most + 1, size)
    assert caught.value.field == "per_class"
    wide = pictures.grid(np.zeros((1, most, size, size, 1), np.uint8))
    pictures.save_gif([wide], tmp_path / "wide.gif")
    with Image.open(tmp_path / "wide.gif") as opened:
        assert opened.width == wide.shape[1] > 65_000


@pytest.mark.parametrize("channels", [1, 3])
def test_a_png_gives_back_every_pixel(channels: int, tmp_path: pathlib.Path) -> None:
    image = RANDOM.integers(0, 256, size=(7, 5, channels), dtype=np.uint8)
    path = tmp_path / "new" / "folder" / "a.png"
    pictures.save_png(image, path)
    np.testing.assert_array_equal(pictures.load_png(path), image)
    assert [file.name for file in path.parent.iterdir()] == ["a.png"]


def header(side: int) -> bytes:
    """A PNG that claims so many pixels a side."""
    claimed = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + claimed + struct.pack(">I", zlib.crc32(claimed))


@pytest.mark.parametrize(
    "content",
    [b"words", b"", header(60_000), header(8), b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", None],
    ids=["words", "empty", "too large", "cut", "a program", "pipe"],
)
def test_what_is_not_a_png_is_an_error_and_is_never_run_or_waited_for(
    content: bytes | None, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ran(*arguments: Any) -> None:
        raise AssertionError("a picture was run as a program")

    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", ran)
    path = tmp_path / "a.png"
    os.mkfifo(path) if content is None else path.write_bytes(content)
    with pytest.raises(OSError):
        pictures.load_png(path)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_gif_gives_back_its_frames(channels: int, count: int, tmp_path: pathlib.Path) -> None:
    """A palette holds 256 colours, so the frames have few of them."""
    frames = [RANDOM.choice([0, 90, 255], size=(6, 9, channels)).astype(np.uint8) for _ in range(count)]
    path = tmp_path / "new" / "a.gif"
    pictures.save_gif(frames, path)
    seen, _ = film(path)
    np.testing.assert_array_equal(seen, [np.broadcast_to(frame, (6, 9, 3)) for frame in frames])


def test_a_gif_lasts_as_long_as_asked_and_rests_on_its_last_frame(tmp_path: pathlib.Path) -> None:
    frames = [np.full((4, 4, 1), 50 * i, np.uint8) for i in range(5)]
    pictures.save_gif(frames, tmp_path / "a.gif", seconds=2.0)
    assert film(tmp_path / "a.gif")[1] == [400, 400, 400, 400, 1400]
    with Image.open(tmp_path / "a.gif") as opened:
        assert opened.info["loop"] == 0  # for ever


def test_a_long_gif_is_thinned_evenly_from_its_first_to_its_last_frame(tmp_path: pathlib.Path) -> None:
    frames = [np.full((4, 4, 1), i, np.uint8) for i in range(2 * pictures.MAX_FRAMES + 1)]
    pictures.save_gif(frames, tmp_path / "a.gif")
    shown = film(tmp_path / "a.gif")[0][:, 0, 0, 0].astype(int)
    assert len(shown) == pictures.MAX_FRAMES and (shown[0], shown[-1]) == (0, len(frames) - 1)
    assert set(np.diff(shown)) <= {2, 3}


@pytest.mark.parametrize("channels", [1, 3])
def test_names_stand_to_the_left_of_their_rows(channels: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 2, 8, 8, channels), np.uint8)
    plain, named = pictures.grid(images), pictures.grid(images, ["cat", "", "a" * 100])
    margin = named.shape[1] - plain.shape[1]
    np.testing.assert_array_equal(named[:, margin:], plain)
    height = (plain.shape[0] + 1) // 3
    dark = [np.any(named[row * height : (row + 1) * height, :margin] < 128) for row in range(3)]
    assert dark == [True, False, True] and margin < 400
