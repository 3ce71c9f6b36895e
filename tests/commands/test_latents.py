"""Latent diffusion as a person meets it: a cache of a set, a training on it, its pictures, and what is refused."""

from __future__ import annotations

import json
import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image

from archirf_jax.interop import files
from archirf_jax.launch import latents
from archirf_jax.launch.runs import open_run
from configs import autoencoder
from tests import running
from tests.commands import saved
from tests.golden import cases

GOLDEN = pathlib.Path(cases.__file__).parent
TINY = {"model.block_out_channels": (8, 16), "model.norm_num_groups": 4, "model.mid_block_add_attention": False}
CONFIG = f"--config={running.REPOSITORY / 'configs' / 'dit_latent_rf.py'}"
SMALL = (
    *("--config.batch_size=16", "--config.model.hidden_size=16", "--config.model.num_heads=2"),
    *("--config.model.depth=1", "--config.schedule.name=constant", "--config.log.every_steps=2"),
    *("--config.sample.per_class=1", "--config.sample.steps=2", "--config.sample.every_steps=4"),
    *("--config.sample.solver.name=euler", "--config.sample.guidance.scale=1.0", "--config.checkpoint.every_steps=4"),
    *("--config.log.tensorboard=False", "--config.mesh.data=1"),
)
FEW = ("--per_class=2", "--labels=0-1", "--steps=2")


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return saved.save(autoencoder, tmp_path_factory.mktemp("ae") / "run", TINY).workdir


@pytest.fixture(scope="module")
def cache(decoder: pathlib.Path, data_dir: pathlib.Path) -> pathlib.Path:
    folder = decoder.parent / "latents"
    prepare(decoder, data_dir, folder)
    return folder


@pytest.fixture(scope="module")
def run(decoder: pathlib.Path, cache: pathlib.Path, data_dir: pathlib.Path) -> pathlib.Path:
    workdir = decoder.parent / "latent_run"
    assert train(workdir, decoder, cache, 8) == 0
    return workdir


def prepare(decoder: pathlib.Path, data_dir: pathlib.Path, folder: pathlib.Path, *more: str) -> None:
    flags = ("--name=digits", f"--dir={data_dir}", f"--autoencoder={decoder}", f"--out={folder}", *more)
    running.call("prepare_data", *flags)


def arguments(workdir: pathlib.Path, decoder: pathlib.Path, cache: pathlib.Path, steps: int, *more: str) -> list[str]:
    data = (f"--config.data.name=latents:{cache}", f"--config.frozen.autoencoder={decoder}")
    return [CONFIG, f"--workdir={workdir}", *SMALL, *data, f"--config.steps={steps}", *more]


def train(workdir: pathlib.Path, decoder: pathlib.Path, cache: pathlib.Path, steps: int, *more: str) -> int:
    return int(running.call("main", *arguments(workdir, decoder, cache, steps, *more)))


def draw(run: pathlib.Path, out: pathlib.Path, *flags: str) -> None:
    running.call("sample", f"--workdir={run}", f"--out={out}", *flags)


def test_a_run_shows_pictures_and_keeps_its_decoder(run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    with Image.open(run / "samples" / "00000008.png") as shown:
        assert shown.size[0] > 8 and shown.mode in ("L", "RGB")
    moved = shutil.copytree(run, tmp_path / "run")  # neither decoder nor cache are needed to draw
    draw(moved, tmp_path / "x.npz", *FEW)
    drawn = np.load(tmp_path / "x.npz")
    assert drawn["images"].shape == (4, 8, 8, 1) and drawn["images"].dtype == np.uint8
    draw(moved, tmp_path / "z.npz", *FEW, "--latents")
    latents = np.load(tmp_path / "z.npz")["images"]
    assert latents.shape == (4, 4, 4, 4) and latents.dtype == np.float32
    opened = open_run(moved)
    np.testing.assert_array_equal(opened.decode(latents), drawn["images"])
    assert opened.encode(drawn["images"]).shape == latents.shape


@pytest.mark.slow
def test_a_run_goes_on_with_the_same_bytes_though_its_cache_lies_elsewhere(
    run: pathlib.Path, decoder: pathlib.Path, cache: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    cut, moved = shutil.copytree(run, tmp_path / "cut"), shutil.copytree(cache, tmp_path / "moved")
    shutil.rmtree(cut / "checkpoints" / "8")
    with running.messages() as said:
        train(cut, decoder, moved, 8)
    assert any("checkpoint of step 4" in line for line in said)
    running.assert_same_run(run, cut, 8)
    assert open_run(cut).config.data.name == f"latents:{moved}"
    header = json.loads((moved / "latents.json").read_text())
    (moved / "latents.json").write_text(json.dumps(header | {"images_digest": "of others"}))
    refused = running.refused("main", *arguments(cut, decoder, moved, 8))
    assert refused.flag == "--workdir" and "data_digest" in refused.line


def test_a_cache_is_the_same_for_every_training(
    decoder: pathlib.Path, cache: pathlib.Path, data_dir: pathlib.Path
) -> None:
    run, before = open_run(decoder), (cache / "latents.json").read_bytes()
    data = latents.images_of(run.config.data)
    data.update(dir=str(data_dir), flip=True, num_classes=10)
    latents.make_cache(run, data, cache, False, 128)
    assert (cache / "latents.json").read_bytes() == before


@pytest.mark.slow
def test_a_run_on_eight_devices_is_that_on_one(
    run: pathlib.Path, decoder: pathlib.Path, cache: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    train(tmp_path / "run", decoder, cache, 8, "--config.mesh.data=4", "--config.mesh.fsdp=2")
    alone, spread = (running.final_arrays(workdir, 8) for workdir in (run, tmp_path / "run"))
    assert alone.keys() == spread.keys()
    for name in alone:  # AdamW's first steps are as long where a slope is rounding alone
        np.testing.assert_allclose(spread[name], alone[name], rtol=1e-3, atol=2e-5, err_msg=name)
    losses = [[row["loss"] for row in running.rows(workdir)] for workdir in (run, tmp_path / "run")]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)


@pytest.mark.slow
def test_images_are_encoded_where_samples_begin_from_them(run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    for flags in (("--strength=0.5",), ("--mask=left",)):
        draw(run, tmp_path / "x.npz", *FEW, "--image=3", *flags)
        assert np.load(tmp_path / "x.npz")["images"].shape == (4, 8, 8, 1)


def test_samples_are_compared_with_the_images_of_the_cache(run: pathlib.Path) -> None:
    running.call("evaluate", f"--workdir={run}", "--images=64", "--steps=2")
    row = json.loads((run / "evaluations.jsonl").read_text().splitlines()[-1])
    assert row["data"]["name"] == "digits" and {"loss", "frechet"} <= row["figures"].keys()
    assert running.refused("evaluate", f"--workdir={run}", "--metrics=bits_per_dim").flag == "--metrics"


def test_a_cache_of_another_autoencoder_is_refused(
    decoder: pathlib.Path, cache: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    other = saved.save(autoencoder, tmp_path / "other", TINY, spread=0.2).workdir
    refusal = running.refused("main", *arguments(tmp_path / "run", other, cache, 8))
    assert refusal.flag == "config.data.name" and "another autoencoder" in refusal.line
    assert not (tmp_path / "run").exists()


def test_bad_input_is_one_line(
    decoder: pathlib.Path, data_dir: pathlib.Path, run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    made = ("--name=digits", f"--dir={data_dir}", f"--out={tmp_path / 'x'}")
    refusals = {
        "--autoencoder": running.refused("prepare_data", *made, f"--autoencoder={run}"),
        "--out": running.refused("prepare_data", *made[:2], f"--autoencoder={decoder}"),
        "config.data.name": running.refused("main", *arguments(tmp_path / "a", decoder, tmp_path, 8)),
        "config.frozen.autoencoder": running.refused(
            "main", *arguments(tmp_path / "a", tmp_path, decoder.parent / "latents", 8)
        ),
    }
    assert {name: refusal.flag for name, refusal in refusals.items()} == {name: name for name in refusals}
    size = running.refused("prepare_data", *made, f"--autoencoder={decoder}", "--image_size=7")
    assert "multiples of 2" in size.line
    pixels = ("--config.data.name=digits", f"--config.data.dir={data_dir}")
    statistics = running.refused("main", *arguments(tmp_path / "a", decoder, tmp_path, 8), *pixels)
    assert statistics.flag == "config.first_stage.mean" and "prepare_data" in statistics.line


@pytest.mark.slow
def test_an_imported_network_of_latents_is_given_an_imported_decoder(tmp_path: pathlib.Path, run: pathlib.Path) -> None:
    for name, source, *flags in (
        ("dit_learn_sigma", "dit", "--num_heads=3", "--image_size=8"),
        ("vae_sd", "vae", "--norm_num_groups=16"),
    ):
        weights = tmp_path / f"{name}.safetensors"
        files.write(cases.load(GOLDEN / f"{name}.npz").params, weights)
        place = (f"--checkpoint={weights}", f"--workdir={tmp_path / source}")
        running.call("import_weights", f"--source={source}", *place, *flags)
    few, decoder = ("--grid=2", "--solver=ddim", "--labels=0-1", "--per_class=1"), f"--autoencoder={tmp_path / 'vae'}"
    draw(tmp_path / "dit", tmp_path / "x.npz", *few, decoder)
    draw(tmp_path / "dit", tmp_path / "z.npz", *few)
    images, latents = (np.load(tmp_path / name)["images"] for name in ("x.npz", "z.npz"))
    assert images.shape == (2, 32, 32, 3) and latents.shape == (2, 8, 8, 4)
    vae = open_run(tmp_path / "vae")
    np.testing.assert_allclose(images.astype(int), vae.decode(latents / 0.18215), atol=1)
    refusal = running.refused("sample", f"--workdir={run}", decoder, f"--out={tmp_path / 'y.png'}")
    assert refusal.flag == "--autoencoder"
