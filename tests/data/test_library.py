"""A data set in one call, and the configuration that opens it again."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from archirf_jax import data
from archirf_jax.data import pipeline
from archirf_jax.errors import UserError


def images(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def assert_same(ours: data.Dataset, theirs: data.Dataset) -> None:
    assert ours.digest == theirs.digest and ours.class_names == theirs.class_names
    assert ours.arrays is not None and theirs.arrays is not None and ours.arrays.keys() == theirs.arrays.keys()
    for name, array in ours.arrays.items():
        np.testing.assert_array_equal(array, theirs.arrays[name])


def test_a_set_is_prepared_once_and_has_the_size_of_its_own_images(tmp_path: pathlib.Path) -> None:
    first = data.load("digits", dir=str(tmp_path))
    assert (first.image_size, first.channels, first.num_classes, len(first)) == (8, 1, 10, 1797)
    written = next((tmp_path / "digits").glob("*/*array_record*")).stat().st_mtime_ns
    larger = data.load("digits", dir=str(tmp_path), split="train[:20]", image_size=16, channels=3, label_key=None)
    assert (larger.image_size, larger.channels, larger.num_classes, len(larger)) == (16, 3, None, 20)
    assert next((tmp_path / "digits").glob("*/*array_record*")).stat().st_mtime_ns == written
    for dataset in (first, larger):
        assert_same(dataset, pipeline.load(ConfigDict(dataset.config())))


def test_a_folder_is_cut_to_squares(tmp_path: pathlib.Path) -> None:
    for name in ("b", "a"):
        (tmp_path / name).mkdir()
        Image.fromarray(images(20, 30, 3)).save(tmp_path / name / "1.png")
    dataset = data.folder(str(tmp_path), size=12)
    assert (dataset.image_size, dataset.channels, dataset.class_names) == (12, 3, ["a", "b"])
    assert_same(dataset, pipeline.load(ConfigDict(dataset.config())))
    ranged = data.folder(str(tmp_path), size=12, value_range=(0, 510))
    assert ranged.arrays is not None and ranged.arrays["image"].max() < 130
    assert_same(ranged, pipeline.load(ConfigDict(ranged.config())))
    with pytest.raises(UserError) as caught:
        data.load(f"folder:{tmp_path}")
    assert caught.value.field == "data.image_size"


@pytest.mark.parametrize("channels", [1, 3])
def test_arrays_are_the_set(channels: int) -> None:
    pixels, labels = images(7, 8, 8, channels), np.asarray([0, 2, 1, 0, 0, 2, 1])
    dataset = data.from_arrays(pixels, labels, ["x", "y", "z"])
    assert (dataset.image_size, dataset.channels, dataset.num_classes) == (8, channels, 3)
    assert dataset.arrays is not None and dataset.config()["name"] == "arrays"
    np.testing.assert_array_equal(dataset.arrays["image"], pixels)
    np.testing.assert_array_equal(dataset.arrays["label"], labels)
    assert data.from_arrays(pixels, labels).class_names == ["0", "1", "2"]
    plain = data.from_arrays(pixels)
    assert plain.num_classes is None and plain.arrays is not None and list(plain.arrays) == ["image"]
    with pytest.raises(UserError) as caught:
        pipeline.load(ConfigDict(dataset.config()))
    assert caught.value.field == "data.name"


def test_one_byte_or_label_makes_other_arrays_another_set() -> None:
    pixels, labels = images(7, 8, 8, 1), np.zeros(7, np.int64)
    digests = {data.from_arrays(pixels, labels, ["x", "y"]).digest, data.from_arrays(pixels).digest}
    assert data.from_arrays(pixels.copy(), labels.astype(np.int8), ["x", "y"]).digest in digests
    changed, moved = pixels.copy(), labels.copy()
    changed[3, 4, 5] ^= 1
    moved[6] = 1
    digests |= {
        data.from_arrays(changed, labels, ["x", "y"]).digest,
        data.from_arrays(pixels, moved, ["x", "y"]).digest,
    }
    assert len(digests) == 4


@pytest.mark.parametrize(
    ("field", "given"),
    [
        ("images", {"images": images(4, 8, 8)}),
        ("images", {"images": images(4, 8, 9, 1)}),
        ("images", {"images": images(0, 8, 8, 1)}),
        ("images", {"images": images(4, 8, 8, 1).astype(np.float32)}),
        ("data.channels", {"images": images(4, 8, 8, 2)}),
        ("labels", {"labels": np.zeros(3, np.int32)}),
        ("labels", {"labels": np.zeros(4)}),
        ("labels", {"labels": np.asarray([0, 1, -1, 0])}),
        ("labels", {"labels": np.asarray([0, 1, 2, 0]), "class_names": ["x", "y"]}),
        ("class_names", {"class_names": ["x"]}),
    ],
)
def test_other_arrays_are_refused(field: str, given: dict[str, Any]) -> None:
    with pytest.raises(UserError) as caught:
        data.from_arrays(**{"images": images(4, 8, 8, 1)} | given)
    assert caught.value.field == field
