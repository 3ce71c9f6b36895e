"""Batches: the same ones whether a set lies on the device or streams, from whatever step; every image once an epoch."""

from __future__ import annotations

import os
import pathlib
import shutil
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from archirf_jax.contracts import Batch
from archirf_jax.data.pipeline import ResidentFeed, StreamFeed, load, make_feed
from archirf_jax.errors import UserError
from tests import running
from tests.data import settings
from tests.data.settings import RESIDENT, STREAMED

SIZE, BATCH, STEPS = 23, 5, 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """SIZE images that differ, none its own mirror image; the number of each is the grey level of a corner."""
    path = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for number in range(SIZE):
        levels = rng.integers(0, 256, (8, 8), np.uint8)
        levels[0] = [number, *range(101, 108)]
        file = path / ("even", "odd")[number % 2] / f"{number:02}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(levels).save(file)
    return path


def configured(folder: pathlib.Path, cache: int = RESIDENT, seed: int = 0, **data: Any) -> ConfigDict:
    return settings.config(BATCH, STEPS, seed, **{"name": f"folder:{folder}", "device_cache_mib": cache} | data)


def feed_of(config: ConfigDict) -> ResidentFeed | StreamFeed:
    return make_feed(load(config.data), config)


def batches(feed: ResidentFeed | StreamFeed, start: int = 0, stop: int = STEPS) -> list[Batch]:
    """The batches of steps start..stop-1, each made as the training loop makes it."""
    batch = jax.jit(feed.batch)
    keys = [jax.random.fold_in(jax.random.key(0), step) for step in range(start, stop)]
    found = [batch(feed.chunk(step, 1)[0], 0, key) for step, key in zip(range(start, stop), keys, strict=True)]
    feed.close()
    return [jax.tree.map(np.asarray, one) for one in found]


def levels(batch: Batch) -> np.ndarray:
    """Grey levels, (B, 8, 8) int."""
    return np.round((np.asarray(batch["image"])[..., 0] + 1) * 127.5).astype(int)


def numbers(found: list[Batch]) -> np.ndarray:
    """Which image each example is, by whichever of its upper corners holds the number."""
    return np.concatenate([levels(one)[:, 0, [0, -1]].min(1) for one in found])


def stored_levels(folder: pathlib.Path) -> np.ndarray:
    """(SIZE, 8, 8), by number."""
    files = sorted(folder.glob("*/*.png"), key=lambda file: file.name)
    return np.stack([np.asarray(Image.open(file)) for file in files]).astype(int)


def assert_equal(ours: list[Batch], theirs: list[Batch]) -> None:
    assert len(ours) == len(theirs) > 0
    for mine, yours in zip(ours, theirs, strict=True):
        jax.tree.map(np.testing.assert_array_equal, mine, yours)


@pytest.fixture(params=[RESIDENT, STREAMED], ids=["resident", "streamed"])
def cache(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.mark.parametrize("channels", [0, 2, 4])
def test_a_set_is_read_as_grey_or_rgb_alone(channels: int, folder: pathlib.Path) -> None:
    with pytest.raises(UserError) as caught:
        load(settings.data(name=f"folder:{folder}", channels=channels))
    assert caught.value.field == "data.channels"


def test_the_memory_limit_decides_between_resident_and_streamed(folder: pathlib.Path) -> None:
    assert isinstance(feed_of(configured(folder)), ResidentFeed)
    assert isinstance(feed_of(configured(folder, STREAMED)), StreamFeed)


@pytest.mark.parametrize(("flip", "seed"), [(False, 0), (True, 2**40 + 7)])
def test_resident_and_streamed_batches_are_identical_at_every_step_of_several_epochs(
    folder: pathlib.Path, flip: bool, seed: int
) -> None:
    assert SIZE % BATCH and STEPS * BATCH > 5 * SIZE
    resident, streamed = (batches(feed_of(configured(folder, mib, seed, flip=flip))) for mib in (RESIDENT, STREAMED))
    assert_equal(resident, streamed)


def test_resident_and_streamed_batches_of_a_prepared_set_are_identical(data_dir: pathlib.Path) -> None:
    configs = [configured(data_dir, mib, name="digits", dir=str(data_dir)) for mib in (RESIDENT, STREAMED)]
    resident, streamed = (batches(feed_of(config), 0, 4) for config in configs)
    assert_equal(resident, streamed)
    assert len({one for batch in resident for one in batch["label"].tolist()}) > 3


def test_every_image_is_visited_exactly_once_an_epoch(folder: pathlib.Path, cache: int) -> None:
    visited = numbers(batches(feed_of(configured(folder, cache))))
    epochs = visited[: 5 * SIZE].reshape(5, SIZE)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(SIZE), (5, 1)))
    assert len({tuple(epoch) for epoch in epochs}) == 5


def test_every_image_keeps_its_label(folder: pathlib.Path, cache: int) -> None:
    found = batches(feed_of(configured(folder, cache)))
    np.testing.assert_array_equal(np.concatenate([one["label"] for one in found]), numbers(found) % 2)


@pytest.mark.parametrize("start", [1, 20])
def test_a_feed_opened_later_goes_on_with_the_order_of_one_that_ran_from_the_start(
    folder: pathlib.Path, cache: int, start: int
) -> None:
    config = configured(folder, cache, flip=True)
    assert_equal(batches(feed_of(config), start), batches(feed_of(config))[start:])


def test_a_streamed_feed_can_be_opened_anywhere_after_it_was_closed(folder: pathlib.Path) -> None:
    feed, resident = feed_of(configured(folder, STREAMED)), feed_of(configured(folder))
    for start, stop in ((3, 6), (0, 2), (10, 11)):
        assert_equal(batches(feed, start, stop), batches(resident, start, stop))


@pytest.mark.parametrize(("data", "fsdp"), [(8, 1), (2, 2)])
def test_devices_share_the_batches_of_one(folder: pathlib.Path, cache: int, data: int, fsdp: int) -> None:
    config = configured(folder, cache, flip=True)
    config.batch_size = 8
    alone = batches(feed_of(config), 0, 9)
    config.mesh.update({"data": data, "fsdp": fsdp})
    feed = feed_of(config)
    for array in (leaf for leaf in jax.tree.leaves(feed.chunk(0, 1)[0]) if isinstance(leaf, jax.Array)):
        assert len(array.sharding.device_set) == data * fsdp
        assert array.is_fully_replicated == (cache == RESIDENT)
    feed.close()
    assert_equal(batches(feed, 0, 9), alone)


def test_a_batch_that_does_not_divide_among_the_devices_and_parts_is_refused(folder: pathlib.Path, cache: int) -> None:
    config = configured(folder, cache)
    config.update({"batch_size": 14, "accumulation": 2, "mesh": {"data": 4}})
    with pytest.raises(UserError):
        feed_of(config)


def test_one_chunk_serves_the_same_batches_as_one_chunk_a_step(folder: pathlib.Path) -> None:
    feed = feed_of(configured(folder))
    (chunk, n), batch = feed.chunk(3, 20), jax.jit(feed.batch)
    assert n == 20 and feed.chunk(3, 1000)[1] == feed.dispatch == 50
    keys = [jax.random.fold_in(jax.random.key(0), step) for step in range(3, 23)]
    together = [jax.tree.map(np.asarray, batch(chunk, jnp.int32(i), key)) for i, key in enumerate(keys)]
    assert_equal(together, batches(feed, 3, 23))


@pytest.mark.parametrize("seed", [1, 2**31])
def test_another_seed_gives_another_order(folder: pathlib.Path, cache: int, seed: int) -> None:
    first, second = (numbers(batches(feed_of(configured(folder, cache, s)), 0, 9)) for s in (0, seed))
    assert (first != second).mean() > 0.5


def test_pixels_span_minus_one_to_one_and_types_are_as_promised(tmp_path: pathlib.Path, cache: int) -> None:
    for name, level in (("black", 0), ("white", 255)):
        (tmp_path / name).mkdir()
        for number in range(5):
            Image.new("L", (8, 8), level).save(tmp_path / name / f"{number}.png")
    for channels in (1, 3):
        for batch in batches(feed_of(configured(tmp_path, cache, channels=channels)), 0, 3):
            assert batch["image"].dtype == np.float32 and batch["label"].dtype == np.int32
            assert batch["image"].shape == (BATCH, 8, 8, channels) and batch["label"].shape == (BATCH,)
            np.testing.assert_array_equal(
                batch["image"], (2.0 * batch["label"] - 1)[:, None, None, None] + 0 * batch["image"]
            )


def test_a_range_of_levels_holds_in_batches_and_a_saved_one_opens_the_same_set(
    tmp_path: pathlib.Path, cache: int
) -> None:
    for number in range(BATCH):
        levels = np.full((8, 8), 1000 + 500 * number, np.uint16)
        Image.fromarray(levels).save(tmp_path / f"{number}.png")
    config = configured(tmp_path, cache, value_range=[1000, 3000])
    assert isinstance(feed := feed_of(config), ResidentFeed if cache else StreamFeed)
    (batch,) = batches(feed, 0, 1)
    np.testing.assert_allclose(np.sort(batch["image"][:, 0, 0, 0]), [-1, -0.5, 0, 0.5, 1], atol=0.004)
    assert load(ConfigDict(load(config.data).config())).config()["value_range"] is not None


def test_each_image_is_mirrored_by_a_coin_of_its_own(folder: pathlib.Path, cache: int) -> None:
    config = configured(folder, cache, flip=True)
    config.batch_size = SIZE
    feed = feed_of(config)
    chunk, batch = feed.chunk(0, 1)[0], jax.jit(feed.batch)
    examples = [batch(chunk, 0, jax.random.key(key)) for key in range(20)]
    plain = stored_levels(folder)[numbers(examples[:1])]
    for example in examples:
        np.testing.assert_array_equal(example["label"], examples[0]["label"])
    images = np.stack([levels(example) for example in examples])
    same, turned = (images == plain).all((2, 3)), (images == plain[:, :, ::-1]).all((2, 3))
    assert (same ^ turned).all()
    assert 0.4 < turned.mean() < 0.6
    assert len(np.unique(turned, axis=0)) == 20 and len(np.unique(turned, axis=1).T) == SIZE


def test_nothing_is_mirrored_unless_asked_for(folder: pathlib.Path, cache: int) -> None:
    stored = stored_levels(folder)
    for batch in batches(feed_of(configured(folder, cache))):
        np.testing.assert_array_equal(levels(batch), stored[numbers([batch])])


@pytest.fixture
def damaged(tmp_path: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    """The images with three unreadable files among them."""
    for file in folder.glob("*/*.png"):
        copy = tmp_path / file.relative_to(folder)
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(file.read_bytes())
    (tmp_path / "even/04.png").write_bytes(b"not an image")
    (tmp_path / "odd/notes.txt").write_text("neither")
    os.mkfifo(tmp_path / "odd/pipe.png")
    return tmp_path


def test_unreadable_files_are_refused_by_name(
    damaged: pathlib.Path, cache: int, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(UserError) as caught:
        load(configured(damaged, cache).data)
    assert caught.value.field == "data.name" and "3 of 25" in str(caught.value)
    assert str(damaged / "even/04.png") in caplog.text and str(damaged / "odd/notes.txt") in caplog.text
    assert str(damaged / "odd/pipe.png") in caplog.text
    assert str(damaged / "even/06.png") not in caplog.text


def test_unreadable_files_can_be_left_out(damaged: pathlib.Path, cache: int) -> None:
    found = batches(feed_of(configured(damaged, cache, skip_unreadable=True)))
    visited = numbers(found)[: SIZE - 1]
    assert sorted(visited) == [number for number in range(SIZE) if number != 4]
    np.testing.assert_array_equal(np.concatenate([one["label"] for one in found]), numbers(found) % 2)


def test_a_set_of_unreadable_files_only_is_refused_even_so(tmp_path: pathlib.Path, cache: int) -> None:
    (tmp_path / "only.png").write_bytes(b"")
    with pytest.raises(UserError) as caught:
        load(configured(tmp_path, cache, skip_unreadable=True).data)
    assert caught.value.field == "data.name"


def test_a_batch_larger_than_the_set_is_refused(folder: pathlib.Path, cache: int) -> None:
    config = configured(folder, cache)
    config.batch_size = SIZE
    feed_of(config)
    config.batch_size = SIZE + 1
    with pytest.raises(UserError) as caught:
        feed_of(config)
    assert caught.value.field == "batch_size"


@pytest.mark.parametrize("harm", [pathlib.Path.unlink, lambda file: file.write_bytes(b"not an image")])
def test_an_image_that_is_lost_while_its_folder_streams_is_named(
    folder: pathlib.Path, tmp_path: pathlib.Path, harm: Any
) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    feed = feed_of(configured(tmp_path, STREAMED))
    harm(tmp_path / "even/04.png")
    with pytest.raises(UserError) as caught:
        batches(feed)
    assert caught.value.field == "data.name" and str(tmp_path / "even/04.png") in str(caught.value)


def test_a_record_that_is_damaged_while_its_set_streams_is_named(
    data_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    shutil.copytree(data_dir / "digits", tmp_path / "digits")
    file = next((tmp_path / "digits/1.0.0").glob("*array_record*"))
    whole = file.read_bytes()
    middle = len(whole) // 2
    file.write_bytes(whole[:middle] + bytes(4096) + whole[middle + 4096 :])
    config = settings.config(100, 18, dir=str(tmp_path), device_cache_mib=STREAMED)
    with pytest.raises(UserError) as caught:
        batches(make_feed(load(config.data), config), 0, 18)
    assert caught.value.field == "data.name" and "digits train example" in str(caught.value)


def test_a_set_knows_its_classes_sizes_and_configuration(folder: pathlib.Path, cache: int) -> None:
    data = configured(folder, cache, flip=True).data
    dataset = load(data)
    assert (dataset.num_classes, dataset.class_names) == (2, ["even", "odd"])
    assert (dataset.image_size, dataset.channels, len(dataset)) == (8, 1, SIZE)
    assert dataset.config() == data.to_dict()
    assert load(ConfigDict(dataset.config())).digest == dataset.digest == dataset.source.digest()


def test_without_labels_batches_hold_images_alone(folder: pathlib.Path, cache: int) -> None:
    config = configured(folder, cache, label_key=None)
    dataset = load(config.data)
    assert dataset.num_classes is None and dataset.class_names == []
    assert [list(one) for one in batches(make_feed(dataset, config), 0, 2)] == [["image"]] * 2


def test_leaving_an_example_out_makes_another_set(damaged: pathlib.Path, cache: int) -> None:
    dataset = load(configured(damaged, cache, skip_unreadable=True).data)
    assert dataset.digest != dataset.source.digest()


# Libraries may look whether TensorFlow is installed; here it seems to be, and importing it is noted and fails.
WITH_A_DECOY_OF_TENSORFLOW = """
import importlib.machinery
import sys

class Decoy:
    imported = []

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "tensorflow":
            return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        self.imported.append(spec.name)
        raise ImportError(spec.name)

    def exec_module(self, module):
        pass

sys.meta_path.insert(0, Decoy())

import jax
from archirf_jax.data.pipeline import ResidentFeed, StreamFeed, load, make_feed
from tests.data import settings

for cache, kind in ((settings.RESIDENT, ResidentFeed), (settings.STREAMED, StreamFeed)):
    config = settings.config(128, 2, dir=sys.argv[1], device_cache_mib=cache)
    feed = make_feed(load(config.data), config)
    assert isinstance(feed, kind)
    for step in range(2):
        assert feed.batch(feed.chunk(step, 1)[0], 0, jax.random.key(0))["image"].shape == (128, 8, 8, 1)
    feed.close()

assert not Decoy.imported, Decoy.imported
try:
    import tensorflow.io
except ImportError:
    print("noted", Decoy.imported)
"""


def test_reading_data_never_imports_tensorflow(data_dir: pathlib.Path) -> None:
    command = [sys.executable, "-c", WITH_A_DECOY_OF_TENSORFLOW, str(data_dir)]
    done = running.process(command)
    assert done.returncode == 0, done.stderr
    # The decoy does notice an import that takes place.
    assert "noted ['tensorflow']" in done.stdout
