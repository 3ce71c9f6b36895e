"""A training whose batches differ in shape goes on exactly, and networks that do not take a shape are refused."""

from __future__ import annotations

import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image

from archirf_jax.data.feeds import make_feed
from archirf_jax.data.pipeline import load
from archirf_jax.launch import sizes
from archirf_jax.launch.runs import open_run
from archirf_jax.launch.training import check_buckets
from archirf_jax.tasks.building import make_task, resolve
from configs import adm_ddpm
from tests import running
from tests.commands import saved
from tests.commands.drawing import arrays

STEPS = 8
FIELDS = (
    *(
        f"--config.steps={STEPS}",
        "--config.batch_size=4",
        "--config.schedule.warmup_steps=1",
        "--config.data.flip=True",
    ),
    *("--config.checkpoint.every_steps=4", "--config.sample.every_steps=4", "--config.sample.classes=1"),
    *("--config.data.crop=random", "--config.conditioners.size.name=size", "--config.model.size_numbers=6"),
)


def flags(images: pathlib.Path, buckets: str = "(2, 2)") -> tuple[str, ...]:
    return (f"--config.data.name=folder:{images}", *FIELDS, f"--config.data.buckets={buckets}")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("images")
    for number in range(24):
        sides = [(7, 9), (6, 11), (20, 11)][number % 3]
        Image.fromarray(np.random.default_rng(number).integers(0, 256, sides, np.uint8)).save(path / f"{number}.png")
    return path


@pytest.fixture(scope="module")
def trained(images: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A run that nothing interrupted."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    running.train(workdir, images, *flags(images))
    return workdir


@pytest.mark.slow
def test_a_run_of_several_shapes_goes_on_with_the_same_bytes(
    trained: pathlib.Path, images: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    copy = shutil.copytree(trained, tmp_path / "copy")
    shutil.rmtree(copy / "checkpoints" / str(STEPS))
    with running.messages() as said:
        running.train(copy, images, *flags(images))
    assert any(all(shape in line for shape in ("6x10", "8x8", "10x6")) for line in said)
    running.assert_same_run(trained, copy, STEPS)
    assert (trained / "samples" / f"{STEPS:08}.png").exists()


@pytest.mark.slow
def test_images_of_another_shape_are_drawn_and_conditioned_on_it(trained: pathlib.Path, tmp_path: pathlib.Path) -> None:
    few = ("--labels=0", "--per_class=2", "--steps=2")
    usual, square = (arrays(trained, tmp_path, *few, *more)[0] for more in ((), ("--size=8x8",)))
    np.testing.assert_array_equal(usual, square)
    wide, labels = arrays(trained, tmp_path, *few, "--size=6x10")
    assert wide.shape == (2, 6, 10, 1) and labels.tolist() == [0, 0]
    task, batch = open_run(trained).at_size(6, 10).task, {"label": np.zeros(3, np.int32)}
    usual = task.conditioner.parts["size"].numbers
    given = sizes.given(task, batch, None, "2,3", None)["size"][0]
    np.testing.assert_array_equal([usual, given], [[6, 10, 0, 0, 6, 10], [6, 10, 2, 3, 6, 10]])


@pytest.mark.slow
@pytest.mark.parametrize("text", ["8", "0x8", "8x90000", "12x6"])  # no bucket is larger than 10
def test_what_is_no_size_of_the_network_is_refused(text: str, trained: pathlib.Path) -> None:
    assert running.refused("sample", f"--workdir={trained}", f"--size={text}").flag == "--size"


def test_a_shape_that_a_network_does_not_take_is_refused_before_the_run(
    images: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """Sides of 7 and 9 are not made of patches of 2."""
    command = running.small(tmp_path / "run", images, *flags(images, "(1, 2)"))
    assert running.refused("main", *command).flag == "config.data.buckets"
    assert not (tmp_path / "run").exists()


def test_a_unet_takes_every_shape_that_it_can_halve(images: pathlib.Path) -> None:
    config = adm_ddpm.get_config("digits").unlock()
    config.update_from_flattened_dict(saved.TINY_ADM)
    config.data.update(name=f"folder:{images}", buckets=(2, 2), label_key=None)
    config.batch_size, config.mesh.data = 4, 1
    dataset = load(config.data)
    resolve(config, dataset.num_classes or 1)
    check_buckets(make_task(config), config, make_feed(dataset, config))
