"""Autoencoders as a person meets them: trained, stopped, looked at, measured, exported and begun from others."""

from __future__ import annotations

import json
import math
import pathlib
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from archirf_jax import sharding
from archirf_jax.data.images import to_float
from archirf_jax.interop import files
from archirf_jax.launch.runs import open_run
from archirf_jax.objectives import structural
from archirf_jax.tasks.building import make_task
from configs import autoencoder, autoencoder_kl
from tests import running
from tests.commands import saved
from tests.golden import cases
from tests.tasks.settings import config
from tests.tasks.test_autoencoder import drawn_state

GOLDEN = pathlib.Path(cases.__file__).parent
STEPS, RATE = 12, 1e-3  # of a training, and of one that begins from other weights
PATCHES = {"name": "patchgan", "width": 8, "depth": 1, "norm_num_groups": 4}
NETWORK = (
    *("--config.model.block_out_channels=(8,)", "--config.model.norm_num_groups=4"),
    "--config.model.mid_block_add_attention=False",
)
SMALL = (
    *("--config.batch_size=8", "--config.log.every_steps=3", "--config.log.tensorboard=False"),
    *("--config.checkpoint.every_steps=3", "--config.sample.every_steps=6", "--config.sample.classes=4"),
    *("--config.steps_per_dispatch=3", "--config.mesh.data=1", "--config.schedule.name=constant"),
    *("--config.schedule.warmup_steps=3", "--config.checkpoint.keep=9"),
)
ALONE = ("--config.objective.adversarial_weight=0.0", "--config.objective.discriminator=None")
JUDGED = (
    *("--config.objective.adversarial_weight=0.1", "--config.objective.adversarial_start=4"),
    f"--config.objective.discriminator={PATCHES}",
)
TINY = {"model.block_out_channels": (8,), "model.norm_num_groups": 4, "batch_size": 8}
BATCH = {
    "image": jnp.tanh(jax.random.normal(jax.random.key(0), (8, 8, 8, 1))),
    "label": jnp.arange(8, dtype=jnp.int32),
}
FEW = ("--images=20", "--batch_size=8")
SCALARS = {
    *("latent/std", "latent/std_least", "latent/std_largest", "latent/saturated", "latent_gain", "image_psnr", "l1"),
    *("adversarial", "adversarial_weight", "discriminator/real", "discriminator/fake", "discriminator/loss"),
}


def arguments(workdir: pathlib.Path, data_dir: pathlib.Path, steps: int, *more: str) -> list[str]:
    """The command line of a training with a discriminator, which starts at step 4."""
    file = f"--config={running.REPOSITORY / 'configs' / 'autoencoder.py'}"
    start = [file, f"--workdir={workdir}", f"--config.data.dir={data_dir}", f"--config.steps={steps}"]
    return [*start, *SMALL, *NETWORK, *JUDGED, *more]


def train(workdir: pathlib.Path, data_dir: pathlib.Path, steps: int = STEPS, *more: str) -> list[str]:
    """A training in this process; what it said."""
    with running.messages() as said:
        assert running.call("main", *arguments(workdir, data_dir, steps, *more)) == 0
    return said


@pytest.fixture(scope="module")
def trained(data_dir: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A run that nothing interrupted, and what it said in messages.txt."""
    workdir = tmp_path_factory.mktemp("autoencoders") / "run"
    said = train(workdir, data_dir)
    (workdir / "messages.txt").write_text("\n".join(said))
    return workdir


@pytest.fixture(scope="module")
def kl(data_dir: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> saved.Saved:
    """The run of diffusers' network, its numbers made up."""
    workdir = tmp_path_factory.mktemp("kl") / "run"
    return saved.save(autoencoder_kl, workdir, {**TINY, "data.dir": str(data_dir)}, spread=0.05)


def evaluate(workdir: pathlib.Path, *more: str) -> dict[str, Any]:
    """The row that an evaluation adds."""
    running.call("evaluate", f"--workdir={workdir}", *FEW, *more)
    row: dict[str, Any] = json.loads((workdir / "evaluations.jsonl").read_text().splitlines()[-1])
    return row


def params(workdir: pathlib.Path) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(open_run(workdir).params)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


@pytest.mark.slow
def test_a_training_leaves_previews_plots_and_what_they_are_drawn_from(trained: pathlib.Path) -> None:
    last, said = running.rows(trained)[-1], (trained / "messages.txt").read_text()
    assert last.keys() >= SCALARS and all(math.isfinite(last[name]) for name in SCALARS)
    assert [path.name for path in sorted((trained / "samples").iterdir())] == ["00000006.png", "00000012.png"]
    for name in ("loss.png", "latents.png", "latents_over_time.png"):
        assert name in said
        with Image.open(trained / name) as picture:
            assert min(picture.size) > 100
    assert "--image=0" in said and not (trained / "denoising.gif").exists()
    items = {name.split("'")[1] for name in running.final_arrays(trained, STEPS)}
    kinds = ("params", "opt", "guard", "averages.ema")
    assert items == {f"{network}.{kind}" for network in ("model", "discriminator") for kind in kinds}


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [3, 6])
def test_a_run_that_was_stopped_goes_on_with_the_same_bytes(
    stopped: int, trained: pathlib.Path, data_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """Before the discriminator's start, and after."""
    copy = shutil.copytree(trained, tmp_path / "copy")
    for step in running.steps_saved(copy):
        if step > stopped:
            shutil.rmtree(copy / "checkpoints" / str(step))
    said = train(copy, data_dir)
    assert any(f"checkpoint of step {stopped}" in line for line in said)
    running.assert_same_run(trained, copy, STEPS)


@pytest.mark.slow
def test_sample_shows_an_image_and_its_reconstruction(
    trained: pathlib.Path, data_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    running.call("sample", f"--workdir={trained}", f"--out={tmp_path / 'x.npz'}", "--image=3")
    with np.load(tmp_path / "x.npz") as archive:
        image, made = archive["images"]
    run = open_run(trained)
    digit = running._load(run.config.data).arrays["image"][3]
    np.testing.assert_array_equal(image, digit)
    task: Any = run.task
    expected = jax.jit(task.reconstruct)(run.params, {}, to_float(jnp.asarray(digit))[None])[0]
    assert np.abs(made - 127.5 * (np.clip(expected, -1, 1) + 1)).max() <= 0.51 and np.std(made) > 0
    running.call("sample", f"--workdir={trained}", f"--out={tmp_path / 'x'}/", "--image=3")
    assert len(list((tmp_path / "x").glob("*.png"))) == 2


@pytest.mark.slow
def test_evaluate_measures_what_it_keeps(trained: pathlib.Path, tmp_path: pathlib.Path) -> None:
    row = evaluate(trained, f"--save_images={tmp_path / 'x.npz'}")
    figures, errors = row["figures"], row["errors"]
    assert set(figures) >= {"loss", "psnr", "ssim", "ms_ssim", "frechet"} and "lpips" not in figures
    assert (row["features"], row["images"], row["step"]) == ("pixels", 20, STEPS)
    with np.load(tmp_path / "x.npz") as archive:
        images, made = archive["images"], archive["reconstructions"]
    assert images.shape == made.shape == (20, 8, 8, 1) and images.dtype == made.dtype == np.uint8
    assert len(np.unique(images.reshape(20, -1), axis=0)) == 20
    error = np.mean((images.astype(float) - made) ** 2)
    assert figures["psnr"] == pytest.approx(10 * math.log10(255**2 / error), abs=1e-9)
    for name in ("ssim", "ms_ssim"):
        each = np.asarray(jax.jit(getattr(structural, name))(np.float32(images), np.float32(made), 255.0))
        assert figures[name] == pytest.approx(each.mean(), rel=1e-5)
        assert errors[name] == pytest.approx(each.std(ddof=1) / math.sqrt(20), rel=1e-4)
    assert figures["frechet"] > 0
    assert evaluate(trained, "--metrics=psnr")["figures"] == {"psnr": figures["psnr"]}


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--metrics=psnrr",), "--metrics"),
        (("--metrics=samples",), "--metrics"),
        (("--metrics=psnr,psnr",), "--metrics"),
        (("--metrics=lpips",), "--metrics"),
        (("--metrics=psnr", "--features=pixels"), "--features"),
        (("--save_images=x.png",), "--save_images"),
        (("--solver=euler",), "--solver"),
    ],
)
def test_what_is_not_measured_of_an_autoencoder_is_refused(flags: tuple[str, ...], named: str, kl: saved.Saved) -> None:
    refusal = running.refused("evaluate", f"--workdir={kl.workdir}", *FEW, *flags)
    assert refusal.flag == named
    if named == "--metrics" and "," not in flags[0]:
        assert "psnr, ssim, ms_ssim" in refusal.line


def test_reconstructions_are_kept_of_autoencoders_alone(whole_run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    refusal = running.refused("evaluate", f"--workdir={whole_run}", f"--save_images={tmp_path / 'x.npz'}")
    assert refusal.flag == "--save_images" and not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def imported(kl: saved.Saved, tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, dict[str, np.ndarray]]:
    """A run of what that run is exported to, and the tensors."""
    folder = tmp_path_factory.mktemp("imported")
    path = folder / "kl.safetensors"
    running.call("export_weights", f"--workdir={kl.workdir}", f"--out={path}")
    flags = ("--source=vae", f"--checkpoint={path}", "--norm_num_groups=4", "--image_size=8", "--scaling_factor=1.0")
    running.call("import_weights", f"--workdir={folder / 'run'}", *flags)
    return folder / "run", {name: np.asarray(tensor) for name, tensor in files.read(path).items()}


def test_weights_are_exported_under_diffusers_names_and_imported_again(
    kl: saved.Saved, imported: tuple[pathlib.Path, dict[str, np.ndarray]]
) -> None:
    run, tensors = imported
    assert tensors.keys() >= {
        *("encoder.conv_in.weight", "encoder.down_blocks.0.resnets.0.conv1.weight", "quant_conv.weight"),
        *("encoder.mid_block.attentions.0.to_q.weight", "decoder.up_blocks.0.resnets.1.conv2.bias"),
    }
    ours, theirs = params(kl.workdir), params(run)
    assert ours.keys() == theirs.keys() and len(ours) > 40
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_an_imported_autoencoder_is_measured_on_images_that_are_named(
    kl: saved.Saved, imported: tuple[pathlib.Path, dict[str, np.ndarray]], data_dir: pathlib.Path
) -> None:
    """The same as of the run that it was exported from, which knows its images."""
    run = imported[0]
    assert running.refused("evaluate", f"--workdir={run}", *FEW, "--metrics=psnr").flag == "--data"
    found = evaluate(run, "--metrics=psnr,ssim", "--data=digits", f"--data_dir={data_dir}")["figures"]
    assert found == evaluate(kl.workdir, "--metrics=psnr,ssim")["figures"]


@pytest.fixture(scope="module")
def further(
    imported: tuple[pathlib.Path, dict[str, np.ndarray]], data_dir: pathlib.Path, tmp_path_factory: Any
) -> pathlib.Path:
    """A step from those weights, on larger images and with LPIPS, whose run is gone since; messages.txt as above."""
    folder = tmp_path_factory.mktemp("further")
    files.write(cases.load(GOLDEN / "lpips_alex.npz").params, folder / "alex.safetensors")
    flags = ("--source=lpips", f"--checkpoint={folder / 'alex.safetensors'}")
    running.call("import_weights", f"--workdir={folder / 'lpips'}", *flags)
    file = f"--config={running.REPOSITORY / 'configs' / 'autoencoder_kl.py'}"
    network = ("--config.model.mid_block_add_attention=True", f"--init_from={imported[0]}", *ALONE)
    large = ("--config.data.image_size=32", "--config.batch_size=2", "--config.sample.classes=2")
    judged = ("--config.objective.lpips_weight=1.0", f"--config.frozen.lpips={folder / 'lpips'}")
    rate = f"--config.optimizer.learning_rate={RATE}"
    said = train(folder / "run", data_dir, 1, file, *network, *large, *judged, rate)
    (folder / "run" / "messages.txt").write_text("\n".join(said))
    shutil.rmtree(folder / "lpips")
    return folder / "run"


@pytest.mark.slow
def test_an_imported_autoencoder_is_trained_further(
    further: pathlib.Path, imported: tuple[pathlib.Path, dict[str, np.ndarray]]
) -> None:
    """A step of Adam is at most as long as the learning rate, so that each number is still close to its own."""
    assert str(imported[0]) in (further / "messages.txt").read_text()
    ours, theirs = params(further), params(imported[0])
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert np.max(np.abs(ours[name] - theirs[name])) <= 1.01 * RATE, name
        assert "key" in name or np.any(ours[name] != theirs[name]), name


@pytest.mark.slow
def test_lpips_is_measured_by_the_frozen_run(further: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Weights of the package's layout, imported, trained with and measured by; the run has a copy."""
    assert running.rows(further)[-1]["lpips"] > 0
    figures = evaluate(further, "--images=8", "--metrics=lpips,psnr", f"--save_images={tmp_path / 'x.npz'}")
    with np.load(tmp_path / "x.npz") as archive:
        images, made = (np.float32(archive[name]) / 127.5 - 1 for name in ("images", "reconstructions"))
    lpips = open_run(further).runs["lpips"]
    task: Any = lpips.task
    expected = np.asarray(jax.jit(task.model.apply)({"params": lpips.params["model"]}, images, made))
    assert figures["figures"]["lpips"] == pytest.approx(expected.mean(), rel=1e-5)
    assert expected.min() > 0


@pytest.mark.slow
def test_a_step_on_eight_devices_is_that_on_one() -> None:
    """With the adaptive weight and the spread of latents, which are of the whole batch."""
    changes = {
        **{"model.block_out_channels": (8,), "model.norm_num_groups": 4, "model.mid_block_add_attention": False},
        **{"objective.adversarial_weight": 0.5, "objective.discriminator": PATCHES, "data.num_classes": 10},
        # Updates are as large as gradients: an Adam of its usual kind divides rounding errors by rounding errors.
        **{"optimizer.eps": 1.0, "optimizer.learning_rate": 1.0, "schedule.name": "constant"},
        **{"schedule.warmup_steps": 0, "batch_size": 8},
    }
    task: Any = make_task(config(autoencoder, changes, {}))
    step, state, found = jax.jit(task.step), drawn_state(task, {}), []
    for mesh in (sharding.make_mesh(1, 1), sharding.make_mesh(4, 2)):
        placed = jax.device_put(state, sharding.place(state, mesh))
        batch = jax.device_put(BATCH, sharding.of_batch(mesh))
        found.append(jax.device_get(step(placed, {}, batch, jax.random.key(5))))
    (alone, few), (many, more) = found
    assert few.keys() == more.keys() and float(few["adversarial_weight"][0]) > 0
    for name in few:
        np.testing.assert_allclose(more[name], few[name], rtol=2e-4, atol=1e-5, err_msg=name)
    for network in alone.networks:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
            alone.networks[network].params,
            many.networks[network].params,
        )
