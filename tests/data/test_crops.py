"""Images that are cut out and say how: the picture is the part that `size` names, whatever was drawn or mirrored."""

from __future__ import annotations

import io
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from archirf_jax.contracts import Batch
from archirf_jax.data.fields import finish, make_fields
from archirf_jax.data.images import UNREADABLE, cut
from archirf_jax.data.pipeline import ResidentFeed, StreamFeed, load, make_feed
from archirf_jax.errors import UserError
from tests.data import settings

TARGET, BATCH, STEPS = 8, 4, 12
SIDES = ((8, 8), (8, 20), (20, 8), (13, 9), (24, 24), (5, 5), (5, 11), (3, 4), (16, 40))  # heights and widths


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """An image of each of SIDES, named by its number."""
    path = tmp_path_factory.mktemp("images")
    for number, sides in enumerate(SIDES):
        levels = np.random.default_rng(number).integers(0, 256, sides, np.uint8)
        Image.fromarray(levels).save(path / f"{number}.png")
    return path


def configured(folder: pathlib.Path, seed: int = 0, **data: Any) -> ConfigDict:
    given = {"name": f"folder:{folder}", "image_size": TARGET, "crop": "random"} | data
    return settings.config(BATCH, STEPS, seed, **given)


def batches(config: ConfigDict, start: int = 0) -> list[Batch]:
    feed = make_feed(load(config.data), config)
    batch = jax.jit(feed.batch)
    keys = [jax.random.key(step) for step in range(start, STEPS)]
    found = [batch(feed.chunk(start + i, 1)[0], 0, key) for i, key in enumerate(keys)]
    feed.close()
    return [jax.tree.map(np.asarray, one) for one in found]


def levels(images: np.ndarray) -> np.ndarray:
    return np.round(np.asarray(images)[..., 0] * 127.5 + 127.5).astype(int)


def resized(folder: pathlib.Path, sides: tuple[int, int]) -> np.ndarray:
    """The whole image of these original sides, its shorter one TARGET."""
    image = Image.open(folder / f"{SIDES.index(sides)}.png")
    scale = TARGET / min(sides)
    width, height = round(image.width * scale), round(image.height * scale)
    return np.asarray(image if image.size == (width, height) else image.resize((width, height), Image.LANCZOS))


@pytest.mark.parametrize("crop", ["random", "center"])
@pytest.mark.parametrize("flip", [False, True])
def test_a_picture_is_the_part_that_its_size_says(folder: pathlib.Path, crop: str, flip: bool) -> None:
    """The same holds of a mirrored picture, in the mirrored image."""
    seen, turned = set(), 0
    for batch in batches(configured(folder, crop=crop, flip=flip)):
        for picture, (*sides, top, left, height, width) in zip(levels(batch["image"]), batch["size"], strict=True):
            assert (height, width) == (TARGET, TARGET)
            whole = resized(folder, tuple(map(int, sides)))
            views = [view[top : top + height, left : left + width] for view in (whole, whole[:, ::-1])]
            equal = [np.array_equal(picture, view) for view in views]
            assert any(equal) if flip else equal[0]
            turned += equal[1]
            seen.add(tuple(sides))
    assert seen == set(SIDES) and (turned > 0) == flip


def test_a_flip_counts_the_left_in_the_mirrored_image() -> None:
    fields = make_fields(settings.data(crop="random", flip=True, image_size=8, label_key=None))
    wide = np.random.default_rng(0).integers(0, 256, (8, 30, 1), np.uint8)
    decoded = fields["image"].decode({"image": wide}, np.random.default_rng(5))
    top, left = decoded["size"][2:4]
    arrays = {name: jnp.asarray(np.stack([array] * 40)) for name, array in decoded.items()}
    coin = np.asarray(jax.random.bernoulli(jax.random.key(3), 0.5, (40, 1, 1, 1))).ravel()
    found = np.asarray(finish(fields, arrays, jax.random.key(3))["size"])
    assert 0 < left < 22 and left != 11 and 0 < coin.sum() < 40
    np.testing.assert_array_equal(found[:, 3], np.where(coin, 30 - 8 - left, left))
    np.testing.assert_array_equal(found[:, [0, 1, 2, 4, 5]], [[8, 30, top, 8, 8]] * 40)


def test_a_cut_is_anywhere_with_the_same_chance_and_in_the_middle_unless_drawn() -> None:
    image = np.zeros((8, 12, 1), np.uint8)
    drawn = [cut(image, (8, 8), 1, rng=np.random.default_rng(i)).corner for i in range(2000)]
    assert {top for top, _ in drawn} == {0}
    shares = np.bincount([left for _, left in drawn], minlength=5) / 2000
    assert len(shares) == 5 and np.all(np.abs(shares - 0.2) < 0.05)
    assert cut(image, (8, 8), 1).corner == (0, 2)


def test_a_cut_depends_on_seed_and_place_in_the_order_alone(folder: pathlib.Path) -> None:
    whole, later = batches(configured(folder)), batches(configured(folder), start=5)
    jax.tree.map(np.testing.assert_array_equal, whole[5:], later)
    other = batches(configured(folder, seed=1))
    assert not np.array_equal(other[0]["size"], whole[0]["size"])
    wide = [row[3] for one in whole for row in one["size"] if tuple(row[:2]) == (8, 20)]
    assert len(set(wide)) > 2  # each epoch cuts anew


def test_what_is_drawn_streams_and_the_middle_lies_on_the_device(folder: pathlib.Path) -> None:
    kinds = {"random": StreamFeed, "center": ResidentFeed}
    for crop, kind in kinds.items():
        config = configured(folder, crop=crop)
        assert isinstance(make_feed(load(config.data), config), kind)


def test_a_measured_set_is_cut_in_the_middle(folder: pathlib.Path) -> None:
    dataset, middle = (load(configured(folder, crop=crop).data) for crop in ("random", "center"))
    for number in range(len(SIDES)):
        ours, theirs = dataset.centred().example(number, position=number), middle.example(number)
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert middle.centred() is middle


def test_the_original_sides_are_those_that_a_person_sees() -> None:
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.fromarray(np.zeros((4, 6), np.uint8)).save(file, "PNG", exif=exif)
    assert cut(file.getvalue(), (8, 8), 1).original == (6, 4)


def test_sides_that_would_become_too_large_are_unreadable() -> None:
    with pytest.raises(UNREADABLE):
        cut(np.zeros((1, 60_000, 1), np.uint8), (64, 64), 1)


def test_another_crop_is_refused(folder: pathlib.Path) -> None:
    with pytest.raises(UserError) as caught:
        load(configured(folder, crop="left").data)
    assert caught.value.field == "data.crop"
