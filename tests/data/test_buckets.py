"""Aspect buckets: shapes of one area, the nearest for each image, batches of one shape in an exact order."""

from __future__ import annotations

import collections
import pathlib
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from archirf_jax.contracts import Batch
from archirf_jax.data.buckets import BucketOrder, assigned, original_sides
from archirf_jax.data.fields import make_fields
from archirf_jax.data.fields.image import bucket_sides
from archirf_jax.data.images import cut, sides_of
from archirf_jax.data.pipeline import StreamFeed, load, make_feed
from archirf_jax.errors import UserError
from tests.data import settings

SDXL = bucket_sides(1024, (64, 4))
BATCH, STEPS = 4, 20


def test_sides_are_multiples_of_about_one_area_up_to_an_aspect() -> None:
    sides = np.asarray(SDXL)
    assert not (sides % 64).any() and (1024, 1024) in SDXL and len(set(SDXL)) == len(SDXL)
    assert {(w, h) for h, w in SDXL} == set(SDXL)
    area = sides.prod(axis=1) / 1024**2
    assert area.max() <= 1 and area.min() >= 0.9
    assert max(h / w for h, w in SDXL) == 4 and max(h / w for h, w in bucket_sides(1024, (64, 2))) == 2


def test_the_published_shapes_of_sdxl_are_among_them() -> None:
    first, last = SDXL.index((704, 1408)), SDXL.index((1728, 576))
    assert last - first + 1 == 26
    aspects = [h / w for h, w in SDXL]
    assert aspects == sorted(aspects)


@pytest.mark.parametrize("wrong", [(), (64,), (48, 4), (0, 4), (64, 0.5), ("64", 4), (64, float("nan"))])
def test_other_numbers_are_refused(wrong: Any) -> None:
    with pytest.raises(UserError) as caught:
        make_fields(settings.data(image_size=1024, buckets=wrong))
    assert caught.value.field == "data.buckets"


def test_each_image_goes_to_the_bucket_of_the_nearest_aspect() -> None:
    originals = np.random.default_rng(0).integers(100, 1000, (500, 2))
    used = assigned(originals, SDXL, 1)
    numbers = np.concatenate([each for _, each in used])
    np.testing.assert_array_equal(np.sort(numbers), np.arange(500))
    for (height, width), own in used:
        for number in own:
            ours, theirs = originals[number, 0] / originals[number, 1], np.asarray(SDXL)
            apart = np.abs(np.log(theirs[:, 0] / theirs[:, 1] / ours))
            assert abs(np.log(height / width / ours)) == pytest.approx(apart.min())


def test_images_of_a_bucket_that_fills_no_batch_go_to_the_nearest_of_the_others() -> None:
    originals = np.asarray([(10, 10)] * 9 + [(10, 20)] * 5 + [(10, 19)] * 2 + [(40, 10)])
    used = assigned(originals, ((10, 10), (10, 20), (10, 18), (40, 10)), 4)
    assert {sides: len(numbers) for sides, numbers in used} == {(10, 10): 10, (10, 20): 7}
    everything = assigned(originals, ((10, 10), (10, 20), (40, 10)), 17)
    assert [len(numbers) for _, numbers in everything] == [17]


def test_an_epoch_has_the_whole_batches_of_every_bucket_and_no_image_twice() -> None:
    counts, size = (9, 4, 14), 4
    members = np.split(np.random.default_rng(0).permutation(sum(counts)), np.cumsum(counts)[:-1])
    sides = ((8, 8), (6, 10), (10, 6))
    order = BucketOrder(sides, tuple(members), size, seed=3)
    epochs = []
    for epoch in range(3):
        found = [[order.at((epoch * 6 + step) * size + row) for row in range(size)] for step in range(6)]
        assert all(len({own for _, own in batch}) == 1 for batch in found)
        assert collections.Counter(batch[0][1] for batch in found) == {(8, 8): 2, (6, 10): 1, (10, 6): 3}
        numbers = [number for batch in found for number, _ in batch]
        assert len(set(numbers)) == len(numbers)
        assert all(number in members[sides.index(own)] for batch in found for number, own in batch)
        epochs.append(([batch[0][1] for batch in found], numbers))
    assert epochs[0][0] != epochs[1][0] or epochs[1][0] != epochs[2][0]
    assert set(epochs[0][1]) != set(epochs[1][1]) or set(epochs[1][1]) != set(epochs[2][1])  # others are left out


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("images")
    for number in range(40):
        sides = [(8, 8), (6, 11), (20, 11), (30, 8)][number % 4]
        Image.fromarray(np.random.default_rng(number).integers(0, 256, sides, np.uint8)).save(path / f"{number}.png")
    return path


def configured(folder: pathlib.Path, batch_size: int = BATCH, **data: Any) -> ConfigDict:
    given = {"name": f"folder:{folder}", "image_size": 8, "crop": "random", "flip": True, "buckets": (2, 2)} | data
    return settings.config(batch_size, STEPS, 0, **given)


def batches(config: ConfigDict, start: int = 0, stop: int = STEPS) -> list[Batch]:
    feed = make_feed(load(config.data), config)
    assert isinstance(feed, StreamFeed)
    batch = jax.jit(feed.batch)
    keys = [jax.random.key(step) for step in range(start, stop)]
    found = [batch(feed.chunk(start + i, 1)[0], 0, key) for i, key in enumerate(keys)]
    feed.close()
    return [jax.tree.map(np.asarray, one) for one in found]


@pytest.mark.parametrize("crop", ["random", None])
def test_a_batch_has_one_shape_which_its_sizes_say(folder: pathlib.Path, crop: str | None) -> None:
    found = batches(configured(folder, crop=crop))
    shapes = collections.Counter(one["image"].shape for one in found)
    assert set(shapes) == {(BATCH, 8, 8, 1), (BATCH, 6, 10, 1), (BATCH, 10, 6, 1)}
    for one in found:
        np.testing.assert_array_equal(one["size"][:, 4:], [one["image"].shape[1:3]] * BATCH)
        wide = one["size"][:, 0] < one["size"][:, 1]
        assert np.all(wide == (one["image"].shape[1] < one["image"].shape[2]))


def test_a_feed_opened_later_goes_on_with_the_same_batches(folder: pathlib.Path) -> None:
    jax.tree.map(np.testing.assert_array_equal, batches(configured(folder))[7:], batches(configured(folder), 7))


def test_devices_share_the_batches_of_one(folder: pathlib.Path) -> None:
    config = configured(folder, 8)
    alone = batches(config, 0, 6)
    config.mesh.data = 8
    jax.tree.map(np.testing.assert_array_equal, batches(config, 0, 6), alone)


def test_what_is_measured_of_a_set_are_squares(folder: pathlib.Path) -> None:
    dataset = load(configured(folder).data)
    assert dataset.arrays is None and dataset.image_size == 8
    assert {dataset.centred().example(number)["image"].shape for number in range(8)} == {(8, 8, 1)}


def test_sides_are_read_as_they_are_decoded(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    for turn in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = turn
        for kind in ("png", "jpg"):
            file = tmp_path / f"{turn}.{kind}"
            Image.fromarray(np.zeros((4, 6), np.uint8)).save(file, exif=exif)
            assert sides_of(file) == sides_of(file.read_bytes()) == cut(file, (8, 8), 1).original
    assert sides_of(np.zeros((3, 5, 1), np.uint8)) == (3, 5)
    dataset = load(configured(folder).data)
    expected = [cut(dataset.source[number]["image"], (8, 8), 1).original for number in range(40)]
    np.testing.assert_array_equal(original_sides(dataset), expected)
