"""A pass shows the examples that it is asked for, decoded beforehand or as they come."""

from __future__ import annotations

import pathlib
import types
from typing import Any

import numpy as np
import pytest
from PIL import Image

from archirf_jax.data import passes
from archirf_jax.data.pipeline import Dataset, load

SIZE = 9  # pictures, of which one cannot be read


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("pictures")
    for number in range(SIZE):
        file = path / ("even", "odd")[number % 2] / f"{number}.png"
        file.parent.mkdir(exist_ok=True)
        Image.new("L", (4, 4), 20 * number).save(file)
    (path / "even" / "2.png").write_text("no picture")
    return path


def opened(folder: pathlib.Path, resident_mib: int) -> Dataset:
    fields: dict[str, Any] = dict(name=f"folder:{folder}", dir="", split="train", label_key="label", image_size=4)
    return load(types.SimpleNamespace(**fields, channels=1, resident_mib=resident_mib, skip_unreadable=True))


@pytest.mark.parametrize("resident_mib", [0, 100])
def test_the_examples_that_are_asked_for_come_in_their_order(folder: pathlib.Path, resident_mib: int) -> None:
    dataset = opened(folder, resident_mib)
    assert (dataset.images is None) == (resident_mib == 0)
    numbers = [0, 4, 6, 8, 1, 3, 5, 7]  # class by class, without the one that cannot be read
    order = np.asarray([6, 1, 0, 7, 7, 2, 5])
    found = list(passes.batches(dataset, order, 3, 4, 1))
    assert [images.shape for images, _ in found] == [(3, 4, 4, 1), (3, 4, 4, 1), (1, 4, 4, 1)]
    images, labels = (np.concatenate(column) for column in zip(*found, strict=True))
    assert (images[:, 0, 0, 0] // 20).tolist() == [numbers[place] for place in order]
    assert labels.tolist() == [numbers[place] % 2 for place in order]
    assert images.dtype == np.uint8 and labels.dtype == np.int32
