"""A pass shows the examples that it is asked for, decoded beforehand or as they come."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest
from PIL import Image

from archirf_jax.data import passes
from archirf_jax.data.dataset import Dataset
from archirf_jax.data.pipeline import load
from archirf_jax.errors import UserError
from tests.data import settings

SIZE = 9  # images, of which one cannot be read


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("images")
    for number in range(SIZE):
        file = path / ("even", "odd")[number % 2] / f"{number}.png"
        file.parent.mkdir(exist_ok=True)
        Image.new("L", (4, 4), 20 * number).save(file)
    (path / "even" / "2.png").write_text("not an image")
    return path


def opened(folder: pathlib.Path, cache: int) -> Dataset:
    return load(settings.data(name=f"folder:{folder}", image_size=4, device_cache_mib=cache, skip_unreadable=True))


@pytest.mark.parametrize("cache", [settings.STREAMED, settings.RESIDENT])
def test_the_examples_that_are_asked_for_come_in_their_order(folder: pathlib.Path, cache: int) -> None:
    dataset = opened(folder, cache)
    assert (dataset.arrays is None) == (cache == settings.STREAMED)
    numbers = [0, 4, 6, 8, 1, 3, 5, 7]  # class by class, without the one that cannot be read
    order = np.asarray([6, 1, 0, 7, 7, 2, 5])
    found = list(passes.batches(dataset, order, 3))
    assert [batch["image"].shape for batch in found] == [(3, 4, 4, 1), (3, 4, 4, 1), (1, 4, 4, 1)]
    images, labels = (np.concatenate([batch[name] for batch in found]) for name in ("image", "label"))
    assert (images[:, 0, 0, 0] // 20).tolist() == [numbers[place] for place in order]
    assert labels.tolist() == [numbers[place] % 2 for place in order]
    assert images.dtype == np.uint8 and labels.dtype == np.int32


def test_an_image_that_disappears_during_a_pass_is_named(tmp_path: pathlib.Path) -> None:
    for number in range(3):
        Image.new("L", (4, 4)).save(tmp_path / f"{number}.png")
    dataset = opened(tmp_path, settings.STREAMED)
    (tmp_path / "1.png").unlink()
    with pytest.raises(UserError) as caught:
        list(passes.batches(dataset, np.arange(3), 2))
    assert caught.value.field == "data.name" and str(tmp_path / "1.png") in str(caught.value)
