"""An image of any mode, shape and orientation becomes the uint8 square that a person sees on white paper."""

from __future__ import annotations

import io
import os
import pathlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from archirf_jax.data.images import UNREADABLE, decode, read_image, to_float, to_uint8
from archirf_jax.errors import UserError
from tests.mutations import mutated

IMAGE_WIDTH, DESCRIPTION, ORIENTATION = 0x0100, 0x010E, 0x0112
GREY, RED = (100, 100, 100), (255, 0, 0)


def encode(pil_image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    pil_image.save(file, kind, **options)
    return file.getvalue()


def plain(mode: str, value: Any) -> Image.Image:
    return Image.new(mode, (8, 8), value)


def palette(*colours: tuple[int, int, int]) -> Image.Image:
    pil_image = plain("P", 0)
    pil_image.putpalette([channel for colour in colours for channel in colour])
    return pil_image


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


MODES = {
    "1 white": (encode(plain("1", 1)), (255, 255, 255)),
    "1 black": (encode(plain("1", 0)), (0, 0, 0)),
    "L": (encode(plain("L", 100)), GREY),
    "L with a transparent level": (encode(plain("L", 100), transparency=100), (255, 255, 255)),
    "LA opaque": (encode(plain("LA", (100, 255))), GREY),
    "LA transparent": (encode(plain("LA", (100, 0))), (255, 255, 255)),
    "P": (encode(palette(RED, GREY)), RED),
    "P with its colour transparent": (encode(palette(RED, GREY), transparency=0), (255, 255, 255)),
    "P with another colour transparent": (encode(palette(RED, GREY), transparency=1), RED),
    "P half transparent": (encode(palette(RED, GREY), transparency=b"\x80\xff"), (255, 127, 127)),
    "RGB": (encode(plain("RGB", (10, 200, 30))), (10, 200, 30)),
    "RGB with a transparent colour": (encode(plain("RGB", RED), transparency=RED), (255, 255, 255)),
    "RGBA opaque": (encode(plain("RGBA", (10, 200, 30, 255))), (10, 200, 30)),
    "RGBA transparent black": (encode(plain("RGBA", (0, 0, 0, 0))), (255, 255, 255)),
    "RGBA half transparent": (encode(plain("RGBA", (255, 0, 0, 128))), (255, 127, 127)),
    "CMYK": (encode(plain("CMYK", (0, 255, 255, 0)), "TIFF"), RED),
    "I;16": (encode(plain("I;16", 100 * 257)), GREY),
    "I;16 white": (encode(plain("I;16", 65535)), (255, 255, 255)),
    "I": (encode(plain("I", 100 * 257), "TIFF"), GREY),
    "F": (encode(plain("F", 100 / 255), "TIFF"), GREY),
    "F a rounding error above white": (encode(plain("F", 1.0001), "TIFF"), (255, 255, 255)),
}


@pytest.mark.parametrize("name", MODES)
def test_every_mode_gives_the_colour_a_person_sees(name: str) -> None:
    encoded, colour = MODES[name]
    mode = Image.open(io.BytesIO(encoded)).mode
    assert mode == name.split()[0]
    image = decode(encoded, 8, 3)
    assert image.dtype == np.uint8 and image.shape == (8, 8, 3)
    np.testing.assert_array_equal(image, np.broadcast_to(np.asarray(colour, np.uint8), (8, 8, 3)))


def test_grey_output_weighs_colours_by_brightness() -> None:
    for colour, brightness in (((255, 0, 0), 0.299), ((0, 255, 0), 0.587), ((0, 0, 255), 0.114)):
        image = decode(encode(plain("RGB", colour)), 8, 1)
        assert image.shape == (8, 8, 1)
        np.testing.assert_allclose(image, 255 * brightness, atol=1)


@pytest.mark.parametrize("channels, mode", [(1, "L"), (1, "LA"), (3, "RGB"), (3, "RGBA")])
def test_an_image_of_the_right_size_keeps_its_exact_values(channels: int, mode: str) -> None:
    values = noise(16, 16, channels)
    pil_image = Image.fromarray(values.squeeze()).convert(mode)
    np.testing.assert_array_equal(decode(encode(pil_image), 16, channels), values)


@pytest.mark.parametrize("height, width", [(16, 40), (40, 16), (16, 17), (17, 16)])
def test_the_centred_square_is_cut_out(height: int, width: int) -> None:
    values = noise(height, width, 3)
    top, left = (height - 16) // 2, (width - 16) // 2
    np.testing.assert_array_equal(
        decode(encode(Image.fromarray(values)), 16, 3), values[top : top + 16, left : left + 16]
    )


def test_nothing_outside_the_centred_square_bleeds_in_when_resizing() -> None:
    values = np.zeros((32, 64, 3), np.uint8)
    values[:, 16:48] = 200
    np.testing.assert_array_equal(decode(encode(Image.fromarray(values)), 8, 3), 200)


def test_a_fine_checkerboard_becomes_flat_grey() -> None:
    board = np.where(np.indices((64, 64)).sum(0) % 2, 255, 0).astype(np.uint8)
    small = decode(encode(Image.fromarray(board)), 8, 1)
    np.testing.assert_allclose(small, 127.5, atol=2)


def test_a_small_image_is_enlarged() -> None:
    assert decode(encode(plain("RGB", RED)), 32, 3).shape == (32, 32, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_camera_orientation_is_applied(orientation: int) -> None:
    # Each tag says how the stored rows and columns lie in the scene; the scene is what comes out.
    scene = noise(16, 16)
    stored = {
        1: scene,
        2: scene[:, ::-1],
        3: scene[::-1, ::-1],
        4: scene[::-1],
        5: scene.T,
        6: scene.T[::-1],
        7: scene[::-1, ::-1].T,
        8: scene.T[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    encoded = encode(Image.fromarray(np.ascontiguousarray(stored)), exif=exif)
    np.testing.assert_array_equal(decode(encoded, 16, 1)[..., 0], scene)


@pytest.mark.parametrize("channels", [1, 3])
def test_an_array_and_its_file_give_the_same(channels: int) -> None:
    values = noise(16, 20, channels)
    np.testing.assert_array_equal(
        decode(values, 8, channels), decode(encode(Image.fromarray(values.squeeze())), 8, channels)
    )


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("nowhere"), lambda path: None])
def test_what_is_not_a_regular_file_is_unreadable_and_never_waited_for(tmp_path: pathlib.Path, make: Any) -> None:
    make(tmp_path / "x.png")
    with pytest.raises(OSError):
        decode(tmp_path / "x.png", 8, 3)
    with pytest.raises(UserError) as caught:
        read_image(tmp_path / "x.png", 8, 3, "image")
    assert caught.value.field == "image" and "x.png" in str(caught.value)


@pytest.mark.parametrize("as_file", [True, False])
def test_a_program_under_the_name_of_an_image_is_not_run(
    as_file: bool, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ran(*arguments: Any, **more: Any) -> None:
        pytest.fail("PostScript was run")

    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", ran)
    content = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(UNREADABLE):
        decode(tmp_path / "x.png" if as_file else content, 8, 1)


def test_floats_and_bytes_are_each_others_inverse_and_reach_minus_one_and_one() -> None:
    levels = np.arange(256, dtype=np.uint8)
    x = to_float(levels)
    assert x.dtype == np.float32 and x[0] == -1 and x[-1] == 1
    np.testing.assert_array_equal(to_uint8(x), levels)
    np.testing.assert_array_equal(to_uint8(np.asarray([-3.0, 3.0])), [0, 255])
    np.testing.assert_array_equal(read_image(np.full((4, 4, 1), 255, np.uint8), 4, 1, "image"), 1)


def test_a_path_and_its_bytes_give_the_same(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "image.jpg"
    file.write_bytes(encode(Image.fromarray(noise(20, 24, 3)), "JPEG"))
    np.testing.assert_array_equal(decode(file, 8, 3), decode(file.read_bytes(), 8, 3))


def test_the_first_frame_of_an_animation_is_taken() -> None:
    animation = encode(plain("RGB", RED), "GIF", save_all=True, append_images=[plain("RGB", (0, 0, 255))])
    np.testing.assert_array_equal(decode(animation, 8, 3)[0, 0], RED)


def text_where_the_camera_writes_a_number() -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION], exif[DESCRIPTION] = 6, "hello"
    whole = encode(plain("RGB", RED), "JPEG", exif=exif)
    return whole.replace(DESCRIPTION.to_bytes(2, "big") + b"\0\2", IMAGE_WIDTH.to_bytes(2, "big") + b"\0\2")


WHOLE = encode(Image.fromarray(noise(32, 32, 3)))
BROKEN = {
    "empty": b"",
    "text": b"<html>404 Not Found</html>",
    "a cut file": WHOLE[: len(WHOLE) // 2],
    "a cut header": WHOLE[:20],
    "a damaged camera tag": text_where_the_camera_writes_a_number(),
    "PostScript": encode(plain("RGB", RED), "EPS"),
    "floats of 0 to 255": encode(Image.fromarray(noise(8, 8).astype(np.float32)), "TIFF"),
    "floats below black": encode(plain("F", -1.0), "TIFF"),
    "floats that are not numbers": encode(plain("F", float("nan")), "TIFF"),
    "8 bits in 32-bit integers": encode(Image.fromarray(noise(8, 8).astype(np.int32)), "TIFF"),
    "integers beyond 16 bits": encode(plain("I", 70_000), "TIFF"),
    "a wrong checksum": WHOLE[:60] + bytes([WHOLE[60] ^ 255]) + WHOLE[61:],
    "a wrong header checksum": WHOLE[:18] + bytes([WHOLE[18] ^ 255]) + WHOLE[19:],
}


@pytest.mark.parametrize("name", BROKEN)
def test_unreadable_bytes_raise_an_expected_error(name: str) -> None:
    with pytest.raises(UNREADABLE):
        decode(BROKEN[name], 8, 3)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "WEBP", "AVIF", "PPM"])
@pytest.mark.filterwarnings("ignore")
def test_random_damage_gives_an_image_or_an_expected_error(kind: str) -> None:
    Image.init()
    if kind not in Image.SAVE:
        pytest.skip(f"this Pillow writes no {kind}")
    exif = Image.Exif()
    exif[ORIENTATION], exif[DESCRIPTION] = 6, "hello"
    options = {"exif": exif} if kind in ("PNG", "JPEG", "WEBP") else {}
    whole = encode(Image.fromarray(noise(12, 16, 3)), kind, **options)
    rng = np.random.default_rng(0)
    failures = 0
    for _ in range(300):
        damaged = bytearray(whole)
        for place in rng.integers(0, min(len(whole), 300), rng.integers(1, 6)):
            damaged[place] = rng.integers(0, 256)
        try:
            assert decode(bytes(damaged), 8, 3).shape == (8, 8, 3)
        except UNREADABLE:
            failures += 1
    assert failures


def test_a_decompression_bomb_is_unreadable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.raises(UNREADABLE):
        decode(encode(plain("RGB", RED)), 8, 3)


def pictures_of(levels: np.ndarray, depth: str) -> bytes:
    """Levels (8, 8) as a file of that depth."""
    dtype, kind = {
        "12 bits in 16": (np.uint16, "PNG"),
        "32-bit integers": (np.int32, "TIFF"),
        "floats": (np.float32, "TIFF"),
    }[depth]
    return encode(Image.fromarray(levels.astype(dtype)), kind)


DEPTHS = ("12 bits in 16", "32-bit integers", "floats")


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("channels", [1, 3])
def test_levels_lie_on_a_line_from_the_lower_end_to_the_upper_one_and_are_clipped(depth: str, channels: int) -> None:
    levels = np.linspace(0, 4095, 64).round().reshape(8, 8)
    expected = np.clip(np.round((levels - 1000) / 2000 * 255), 0, 255)
    found = decode(pictures_of(levels, depth), 8, channels, (1000.0, 3000.0))
    np.testing.assert_array_equal(found, np.broadcast_to(expected[..., None], (8, 8, channels)))
    assert len(np.unique(found)) > 30


def test_a_range_of_eight_bits_holds_for_every_channel_of_colours_and_on_white() -> None:
    np.testing.assert_array_equal(
        decode(encode(plain("RGB", (50, 100, 250))), 8, 3, (50.0, 150.0))[0, 0], [0, 128, 255]
    )
    np.testing.assert_array_equal(decode(encode(plain("LA", (50, 0))), 8, 1, (50.0, 255.0)), 255)
    np.testing.assert_array_equal(decode(noise(8, 8, 3), 8, 3, (0.0, 255.0)), noise(8, 8, 3))


def test_negative_and_infinite_levels_have_a_place_in_a_range_and_nan_has_none() -> None:
    levels = np.full((8, 8), -1000.0)
    levels[0, :4] = 400, -300, np.inf, -np.inf
    np.testing.assert_array_equal(
        decode(pictures_of(levels, "floats"), 8, 1, (-1000.0, 400.0))[0, :5, 0], [255, 128, 255, 0, 0]
    )
    levels[0, 0] = np.nan
    with pytest.raises(UNREADABLE):
        decode(pictures_of(levels, "floats"), 8, 1, (-1000.0, 400.0))


def test_eight_bits_are_not_taken_for_the_dark_end_of_a_range_of_twelve() -> None:
    with pytest.raises(UNREADABLE, match="value_range"):
        decode(encode(plain("L", 100)), 8, 1, (0.0, 4095.0))


@pytest.mark.parametrize("levels", [np.full((8, 8), 200.0), np.full((8, 8), -1.0)])
def test_levels_that_a_format_does_not_explain_are_refused_with_the_field_that_would(levels: np.ndarray) -> None:
    with pytest.raises(UNREADABLE, match=r"data\.value_range"):
        decode(pictures_of(levels, "floats"), 8, 1)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000"])
def test_a_changed_picture_is_decoded_or_refused(kind: str) -> None:
    """A thousand changes of each kind end in an image or in an error that says so, and in nothing else."""
    pixels, file = np.random.default_rng(0).integers(0, 256, (24, 20, 3), np.uint8), io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    decoded = 0
    for changed in mutated(file.getvalue(), seed=1):
        try:
            decoded += decode(changed, 8, 3).shape == (8, 8, 3)
        except UNREADABLE:
            continue
    assert 0 < decoded < 1000
