"""Images of another size than the one of training: drawn where the network knows it, refused otherwise."""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from archirf_jax.launch import sheet_rows
from archirf_jax.launch.runs import open_run
from archirf_jax.models.adm_unet import ADMUNet
from archirf_jax.models.dit import DiT
from archirf_jax.models.edm2_unet import EDM2UNet
from archirf_jax.models.latent_unet import LatentUNet
from archirf_jax.models.mmdit import MMDiT
from archirf_jax.samplers.sample import sample
from configs import dit_rf
from tests.commands import saved
from tests.commands.drawing import PLAIN, arrays, refused
from tests.commands.drawing import sample as command

FEW = ("--labels=1,4", "--per_class=2", *PLAIN)
TINY = {**saved.TINY_DIT, "model.patch_size": 2}


@pytest.fixture(scope="module")
def rotary(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A network that knows any size in patches of two."""
    changes = {**TINY, "model.positions": "rotary", "model.hidden_size": 32}
    return saved.save(dit_rf, tmp_path_factory.mktemp("runs") / "rotary", changes).workdir


def test_the_size_of_training_changes_nothing(rotary: pathlib.Path, tmp_path: pathlib.Path) -> None:
    usual = arrays(rotary, tmp_path, *FEW)[0]
    np.testing.assert_array_equal(arrays(rotary, tmp_path, *FEW, "--size=8x8")[0], usual)


def test_images_of_another_size_are_what_the_network_makes_of_noise_of_that_size(
    rotary: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    run = open_run(rotary)
    task: Any = run.task
    config = task.sampling.replace(solver="euler", steps=4, guidance_scale=1.0)
    asked = sheet_rows.rows(run, [1, 4], 2, 0)
    denoise, shape = task.denoiser(config, run.params, run.frozen), (12, 6, 1)
    how: dict[str, Any] = dict(grid=config.make_grid(task.process), solver=config.make_solver())
    expected = jax.jit(lambda: sample(asked.keys, denoise, {"label": jnp.asarray([1, 1, 4, 4])}, shape, **how))()
    images, labels = arrays(rotary, tmp_path, *FEW, "--size=12x6")
    assert images.shape == (4, 12, 6, 1) and labels.tolist() == [1, 1, 4, 4]
    assert np.max(np.abs(images - np.clip(np.round((np.asarray(expected) + 1) * 127.5), 0, 255))) <= 1
    np.testing.assert_allclose(
        run.sample([1, 4], 2, size=(12, 6), latents=True, steps=4, solver="euler", guidance_scale=1.0),
        expected,
        atol=1e-4,
    )
    command(rotary, *FEW, "--size=12x6", f"--out={tmp_path / 'x.png'}")
    with Image.open(tmp_path / "x.png") as sheet:
        assert sheet.height > 1.5 * sheet.width


def test_a_refiner_goes_on_at_the_size_of_the_base(rotary: pathlib.Path, tmp_path: pathlib.Path) -> None:
    alone = arrays(rotary, tmp_path, *FEW, "--size=4x10")[0]
    refiner = (f"--refiner={rotary}", "--handover=0.5", "--refine.guidance_scale=1")
    refined = arrays(rotary, tmp_path, *FEW, "--size=4x10", *refiner)[0]
    assert alone.shape == (4, 4, 10, 1) and np.max(np.abs(refined - alone)) <= 1


@pytest.mark.parametrize("size", ["7x8", "0x8", "8", "8x8x1", "axb", "-8x8"])
def test_what_is_no_size_of_the_network_is_refused(size: str, rotary: pathlib.Path) -> None:
    assert refused(rotary, f"--size={size}").flag == "--size"


def test_positions_that_the_network_does_not_know_are_refused(tmp_path: pathlib.Path) -> None:
    fixed = saved.save(dit_rf, tmp_path / "fixed", TINY).workdir
    assert refused(fixed, "--size=10x8").flag == "--size"
    assert arrays(fixed, tmp_path, *FEW, "--size=4x8")[0].shape == (4, 4, 8, 1)
    assert refused(fixed, "--size=4x8", "--image=x.png").flag == "--size"


@pytest.mark.parametrize(
    ("model", "multiple", "largest"),
    [
        (LatentUNet(block_out_channels=(32, 64, 64)), 4, None),
        (ADMUNet(channel_mult=(1, 2)), 2, None),
        (EDM2UNet(channel_mult=(1, 2, 3, 4)), 8, None),
        (DiT(patch_size=4), 4, 32),
        (DiT(patch_size=2, positions="rotary"), 2, None),
        (DiT(patch_size=2, positions="learned", position_size=24), 2, 48),
        (MMDiT(patch_size=2), 2, 32),
        (MMDiT(patch_size=2, position_size=192), 2, 384),
    ],
    ids=lambda value: type(value).__name__,
)
def test_networks_say_which_sizes_they_know(model: Any, multiple: int, largest: int | None) -> None:
    assert model.sizes((32, 32)) == (multiple, largest)
