"""A training on images that are cut at random, conditioned on their sizes: it goes on exactly, and draws whole ones."""

from __future__ import annotations

import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image

from archirf_jax.launch import sizes
from archirf_jax.launch.runs import open_run
from tests import running
from tests.commands.drawing import arrays

STEPS = 6
FIELDS = (
    *(
        f"--config.steps={STEPS}",
        "--config.batch_size=4",
        "--config.schedule.warmup_steps=1",
        "--config.checkpoint.every_steps=3",
    ),
    *("--config.sample.every_steps=3", "--config.sample.classes=2", "--config.data.crop=random"),
    *("--config.data.flip=True", "--config.conditioners.size.name=size", "--config.model.size_numbers=6"),
)


def train(workdir: pathlib.Path, images: pathlib.Path) -> None:
    running.train(workdir, images, f"--config.data.name=folder:{images}", *FIELDS)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("images")
    for number in range(14):
        levels = np.random.default_rng(number).integers(0, 256, (8 + number % 3, 8 + number), np.uint8)
        file = path / ("even", "odd")[number % 2] / f"{number}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(levels).save(file)
    return path


@pytest.fixture(scope="module")
def trained(images: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("runs") / "run"
    train(workdir, images)
    return workdir


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_with_the_same_bytes(
    trained: pathlib.Path, images: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    copy = shutil.copytree(trained, tmp_path / "copy")
    shutil.rmtree(copy / "checkpoints" / str(STEPS))
    train(copy, images)
    running.assert_same_run(trained, copy, STEPS)


@pytest.mark.slow
def test_images_are_drawn_as_uncut_ones_unless_others_are_named(trained: pathlib.Path, tmp_path: pathlib.Path) -> None:
    flags = ("--labels=0-1", "--per_class=2")
    usual, labels = arrays(trained, tmp_path, *flags)
    assert labels.tolist() == [0, 0, 1, 1]
    named = ("--original_size=8x8", "--crop_top_left=0,0", "--target_size=8x8")
    np.testing.assert_array_equal(arrays(trained, tmp_path, *flags, *named)[0], usual)


@pytest.mark.slow
def test_each_flag_takes_the_place_of_its_two_numbers(trained: pathlib.Path) -> None:
    task, batch = open_run(trained).task, {"label": np.zeros(3, np.int32)}
    assert sizes.given(task, batch, None, None, None) == {}
    found = sizes.given(task, batch, "30x40", "0,5", None)["size"]
    np.testing.assert_array_equal(found, [[30, 40, 0, 5, 8, 8]] * 3)
    found = sizes.given(task, batch, None, None, "9x7")["size"]
    np.testing.assert_array_equal(found, [[8, 8, 0, 0, 9, 7]] * 3)


@pytest.mark.slow
@pytest.mark.parametrize("text", ["8", "8,8,8", "a,b", "8,-1", "8,99999999", ""])
def test_what_is_not_two_numbers_is_refused(text: str, trained: pathlib.Path) -> None:
    refusal = running.refused("sample", f"--workdir={trained}", f"--crop_top_left={text}")
    assert refusal.flag == "--crop_top_left"


def test_a_network_without_sizes_is_not_given_any(whole_run: pathlib.Path) -> None:
    refusal = running.refused("sample", f"--workdir={whole_run}", "--original_size=8x8")
    assert refusal.flag == "--original_size"
