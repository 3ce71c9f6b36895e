"""Published systems as a person handles them: a folder becomes a run that draws prompts, and a folder again."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from archirf_jax.data import tokenizer
from archirf_jax.errors import UserError
from archirf_jax.interop import files
from archirf_jax.interop.latent_unet_names import rename_latent_unet
from archirf_jax.interop.weights import published_shapes
from archirf_jax.launch import prompts
from archirf_jax.launch.companions import check_refiner
from archirf_jax.launch.runs import Run, keep, open_run
from archirf_jax.models.latent_unet import LatentUNet
from tests import running
from tests.golden import cases, pipelines
from tests.golden.synthetic import synthetic

pytest.importorskip("tokenizers")
CASE = cases.load(pathlib.Path(cases.__file__).parent / "pipeline_sd15.npz")
STEM = "diffusion_pytorch_model"
FEW = ("--steps=2", "--per_prompt=1")
PARTS = ("unet", "vae", "text_encoder")


def own_bytes(path: pathlib.Path) -> dict[str, tuple[str, bytes]]:
    """Type and bytes of every tensor of a file or of several."""
    found = {name: tensor.in_half() for name, tensor in files.read(path).items()}
    return {name: (str(value.dtype), value.tobytes()) for name, value in found.items()}


def shard(folder: pathlib.Path) -> None:
    """Make two files and an index of the one file in a folder."""
    tensors = {name: tensor.in_half() for name, tensor in files.read(folder / f"{STEM}.safetensors").items()}
    places = {name: f"{STEM}-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(tensors)}
    for place in set(places.values()):
        files.write({name: value for name, value in tensors.items() if places[name] == place}, folder / place)
    (folder / f"{STEM}.safetensors").unlink()
    (folder / f"{STEM}.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


def change(path: pathlib.Path, **settings: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """In half precision: a sharded U-Net, a text encoder of that variant, an autoencoder in both, and a filter."""
    folder = pipelines.write(CASE, tmp_path_factory.mktemp("published") / "sd15", np.float16)
    shard(folder / "unet")
    text = folder / "text_encoder"
    (text / "model.safetensors").rename(text / "model.fp16.safetensors")
    whole = pipelines.tensors_of(CASE)["vae"]
    files.write(whole, folder / "vae" / f"{STEM}.safetensors")
    files.write({name: 0 * value for name, value in whole.items()}, folder / "vae" / f"{STEM}.fp16.safetensors")
    (folder / "safety_checker").mkdir()
    files.write({"weight": np.zeros(2, np.float32)}, folder / "safety_checker" / "model.safetensors")
    change(folder / "model_index.json", safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"])
    return folder


@pytest.fixture(scope="module")
def workdir(folder: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("runs") / "sd15"
    with running.messages() as said:
        running.call("import_weights", "--source=sd15", f"--checkpoint={folder}", f"--workdir={workdir}")
    assert any("safety_checker" in line for line in said) and "--prompt=" in said[-1]
    return workdir


def test_a_folder_becomes_one_run_whose_weights_keep_their_types(workdir: pathlib.Path, tmp_path: pathlib.Path) -> None:
    run = open_run(workdir)
    kinds = {name: {leaf.dtype.name for leaf in jax.tree.leaves(one.params)} for name, one in run.runs.items()}
    assert kinds == {"autoencoder": {"float32"}, "text": {"float16"}}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(run.params)} == {"float16"}
    assert (run.config.data.image_size, run.config.data.channels, run.config.process.prediction) == (16, 3, "eps")
    assert run.config.sample.grid.to_dict() == dict(name="leading", offset=1, ends_at_data=False)
    assert (workdir / "frozen" / "text" / tokenizer.FILE).is_file()
    keep(run.runs, tmp_path)  # as a training does that names them
    copy = open_run(tmp_path / "frozen" / "text")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(copy.params)} == {"float16"}
    assert copy.digest() == run.runs["text"].digest()


def test_prompts_are_drawn_by_the_run_alone(workdir: pathlib.Path, tmp_path: pathlib.Path) -> None:
    texts = ("--prompt=a red square", "--prompt=a blue house")
    running.call("sample", f"--workdir={workdir}", *FEW, *texts, f"--out={tmp_path / 'x.npz'}")
    found = np.load(tmp_path / "x.npz")
    assert found["images"].shape == (2, 16, 16, 3) and found["prompts"].tolist() == ["a red square", "a blue house"]
    assert np.any(found["images"][0] != found["images"][1])
    assert running.refused("sample", f"--workdir={workdir}", *FEW[:1]).flag == "--conditions"  # no labels


def test_a_run_goes_out_as_the_folder_that_it_came_from(
    workdir: pathlib.Path, folder: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    out = tmp_path / "again"
    running.call("export_weights", f"--workdir={workdir}", f"--out={out}")
    assert own_bytes(out / "unet" / f"{STEM}.safetensors") == own_bytes(
        folder / "unet" / f"{STEM}.safetensors.index.json"
    )
    for name in (f"vae/{STEM}.safetensors", "text_encoder/model.fp16.safetensors"):
        assert own_bytes(out / name) == own_bytes(folder / name) and len(own_bytes(out / name)) > 50
    for name in ("unet/config.json", "scheduler/scheduler_config.json", "tokenizer/merges.txt", "tokenizer/vocab.json"):
        assert (out / name).read_bytes() == (folder / name).read_bytes()
    index = json.loads((out / "model_index.json").read_text())
    assert index["safety_checker"] == [None, None] and index["unet"] == ["diffusers", "UNet2DConditionModel"]
    assert running.refused("export_weights", f"--workdir={workdir}", f"--out={out}").flag == "--out"


def broken(folder: pathlib.Path, place: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(folder, place))


def refused(folder: pathlib.Path, *flags: str, source: str = "sd15") -> running.Refusal:
    workdir = folder.with_name("run")
    given = (f"--source={source}", f"--checkpoint={folder}", f"--workdir={workdir}", *flags)
    refusal = running.refused("import_weights", *given)
    assert not workdir.exists() and refusal.flag == "--checkpoint"
    return refusal


@pytest.mark.parametrize("name", [*PARTS, "tokenizer", "scheduler"])
def test_a_folder_without_a_part_is_refused_by_its_name(
    name: str, folder: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    other = broken(folder, tmp_path / "other")
    shutil.rmtree(other / name)
    assert repr(name) in refused(other).line


def test_parts_that_do_not_belong_together_are_refused(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    other = broken(folder, tmp_path / "other")
    change(other / "unet" / "config.json", block_out_channels=[8, 32])
    assert "block_out_channels" in refused(other).line
    change(other / "unet" / "config.json", block_out_channels=[8, 16], act_fn="gelu")
    assert "act_fn" in refused(other).line
    shutil.copytree(folder / "unet", other / "unet", dirs_exist_ok=True)
    change(other / "scheduler" / "scheduler_config.json", beta_schedule="sigmoid")
    assert "beta_schedule" in refused(other).line
    (other / "vae" / f"{STEM}.safetensors").unlink()
    (other / "vae" / f"{STEM}.fp16.safetensors").rename(other / "vae" / f"{STEM}.bin")
    assert "safe_serialization" in refused(other).line


def test_flags_about_what_the_files_say_are_refused(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    given = ("import_weights", "--source=sd15", f"--checkpoint={folder}", f"--workdir={tmp_path / 'run'}")
    for flag in ("--norm_num_groups=4", "--schedule=linear", "--tokenizer=tokenizer.json"):
        assert running.refused(*given, flag).flag == flag.partition("=")[0]


def test_a_system_in_one_file_is_refused_with_what_to_do(tmp_path: pathlib.Path) -> None:
    names = ("model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.encoder.conv_in.weight")
    files.write({name: np.zeros((2, 2, 3, 3), np.float32) for name in names}, tmp_path / "v1-5.safetensors")
    assert "save_pretrained" in refused(tmp_path / "v1-5.safetensors").line


def with_unet(folder: pathlib.Path, fields: dict[str, Any], **settings: Any) -> None:
    """Put another U-Net into a folder, of synthetic numbers."""
    common: dict[str, Any] = dict(block_out_channels=(8,), layers_per_block=1, norm_num_groups=4, num_heads=2)
    model = LatentUNet(**common, **fields, use_linear_projection=True)
    x = np.zeros((1, 8, 8, 4), np.float32)
    condition = {"tokens": np.zeros((1, 3, model.context_width)), "noise_level": np.zeros(1)}
    condition |= {"low_res": np.zeros((1, 8, 8, 3)), "size": np.zeros((1, model.size_numbers))}
    condition |= {"inpaint": np.zeros((1, 8, 8, 5)), "pooled": np.zeros((1, model.pooled_width or 1))}
    like = jax.eval_shape(model.init, jax.random.key(0), x, np.zeros(1), condition)["params"]
    shapes = published_shapes(like, rename_latent_unet(model))
    files.write(
        {name: synthetic(name, shape) for name, shape in shapes.items()}, folder / "unet" / f"{STEM}.safetensors"
    )
    known = dict(attention_head_dim=2, norm_num_groups=4, sample_size=8, cross_attention_dim=model.context_width)
    (folder / "unet" / "config.json").write_text(json.dumps(known | settings))


def upscaler(folder: pathlib.Path) -> pathlib.Path:
    """The folder of an upscaler, whose U-Net takes a small image of 8x8 pixels and the level of its noise."""
    pipelines.write(CASE, folder)
    with_unet(folder, dict(context_width=16, noise_levels=50, low_res=True), num_class_embeds=50)
    change(folder / "scheduler" / "scheduler_config.json", prediction_type="v_prediction")
    betas = dict(beta_schedule="scaled_linear", beta_start=0.0001, beta_end=0.02)
    (folder / "low_res_scheduler").mkdir()
    (folder / "low_res_scheduler" / "scheduler_config.json").write_text(json.dumps(betas))
    return folder


def decoding(run: Run, change: Callable[[np.ndarray], np.ndarray]) -> Run:
    """The run with changed weights of its autoencoder."""
    other = dataclasses.replace(run.runs["autoencoder"])
    other.__dict__["_restored"] = 0, jax.tree.map(lambda leaf: change(np.asarray(leaf)), other.params)
    return dataclasses.replace(run, runs={**run.runs, "autoencoder": other})


@pytest.mark.slow
def test_a_refiner_takes_a_score_and_leads_away_from_a_lower_one(tmp_path: pathlib.Path) -> None:
    case = cases.load(pathlib.Path(cases.__file__).parent / "pipeline_sdxl.npz")
    folder = pipelines.write(case, tmp_path / "refiner")
    with_unet(folder, dict(context_width=12, pooled_width=10, size_width=8, size_numbers=5), addition_time_embed_dim=8)
    change(folder / "model_index.json", text_encoder=[None, None], force_zeros_for_empty_prompt=False)
    for name in ("text_encoder", "tokenizer"):
        shutil.rmtree(folder / name)
    given = ("--source=sdxl-refiner", f"--checkpoint={folder}", f"--workdir={tmp_path / 'run'}")
    running.call("import_weights", *given)
    run = open_run(tmp_path / "run")
    task: Any = run.task
    keys, batch = jax.random.split(jax.random.key(0), 1), prompts.batch_of(run, ["a cat"])
    made, null = jax.jit(lambda frozen: (task.conditioner(frozen, batch, keys), task.conditioner.null(frozen)))(
        run.frozen
    )
    assert made["tokens"].shape == (1, 77, 12) and made["pooled"].shape == (1, 10)
    assert made["size"].tolist() == [[16, 16, 0, 0, 6]] and null["size"].tolist() == [16, 16, 0, 0, 2.5]
    assert prompts.null_of(run, "a blue cat")["size"].tolist() == [16, 16, 0, 0, 2.5]
    assert np.any(null["tokens"])  # what the encoder makes of no text
    larger: Any = run.at_size(24, 32).task
    sized, none = jax.jit(lambda frozen: (larger.conditioner(frozen, batch, keys), larger.conditioner.null(frozen)))(
        run.frozen
    )
    assert larger.shape == (12, 16, 4)
    assert sized["size"].tolist() == [[24, 32, 0, 0, 6]] and none["size"].tolist() == [24, 32, 0, 0, 2.5]
    check_refiner(run, decoding(run, lambda leaf: leaf.astype(np.float16).astype(np.float32)), 0.2)
    with pytest.raises(UserError) as caught:
        check_refiner(run, decoding(run, lambda leaf: leaf[..., ::-1]), 0.2)
    assert caught.value.field == "refiner"


@pytest.mark.slow
def test_a_network_that_fills_holes_reads_the_hole_and_what_is_around_it(tmp_path: pathlib.Path) -> None:
    folder, workdir, out = pipelines.write(CASE, tmp_path / "inpaint"), tmp_path / "run", tmp_path / "x.npz"
    with_unet(folder, dict(context_width=16, inpaint=True), in_channels=9)
    running.call("import_weights", "--source=sd15", f"--checkpoint={folder}", f"--workdir={workdir}")
    command = ("sample", f"--workdir={workdir}", *FEW, "--prompt=a red square", "--prompt=a cat", f"--out={out}")
    random = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    inside, outside = random.copy(), random.copy()
    inside[:, :8] //= 2
    outside[:, 8:] //= 2
    images = {}
    for name, image in (("random", random), ("inside", inside), ("outside", outside)):
        Image.fromarray(image).save(tmp_path / f"{name}.png")
        running.call(*command, f"--image={tmp_path / f'{name}.png'}", "--mask=left", "--negative_prompt=blue")
        images[name] = np.load(out)["images"]
    assert images["random"].shape == (2, 16, 16, 3)
    np.testing.assert_array_equal(images["inside"], images["random"])  # what is in the hole is not seen
    assert np.any(images["outside"] != images["random"])
    running.call(*command, f"--image={tmp_path / 'random.png'}", "--mask=top", "--negative_prompt=blue")
    assert np.any(np.load(out)["images"] != images["random"])
    run, mask = running.opened(workdir), np.arange(16) < 8
    how: dict[str, Any] = dict(prompts=["a red square", "a cat"], per_class=1, negative_prompt="blue", steps=2)
    again = run.sample(**how, image=random, mask=np.broadcast_to(mask, (16, 16)))
    assert np.max(np.abs(again.astype(int) - images["random"])) <= 1
    for wrong in ((), (f"--image={tmp_path / 'random.png'}",)):
        assert running.refused(*command, *wrong).flag == "--image"
    running.call("export_weights", f"--workdir={workdir}", f"--out={tmp_path / 'again'}")
    place = f"unet/{STEM}.safetensors"
    assert own_bytes(tmp_path / "again" / place) == own_bytes(folder / place)


@pytest.mark.slow
def test_an_upscaler_takes_its_small_image_from_a_file_of_conditions(tmp_path: pathlib.Path) -> None:
    workdir, out = tmp_path / "run", tmp_path / "x.npz"
    given = upscaler(tmp_path / "upscaler")
    running.call("import_weights", "--source=sd-upscaler", f"--checkpoint={given}", f"--workdir={workdir}")
    command = ("sample", f"--workdir={workdir}", *FEW, "--prompt=a red square", "--prompt=a cat", f"--out={out}")
    assert running.refused(*command).flag == "--conditions"
    for name, rows in (("one", 1), ("two", 2), ("three", 3)):
        np.savez(tmp_path / f"{name}.npz", low_res=np.linspace(-1, 1, rows * 192).reshape(rows, 8, 8, 3))
    images = {}
    for name in ("one", "two"):
        running.call(*command, f"--conditions={tmp_path / f'{name}.npz'}", "--negative_prompt=blue")
        images[name] = np.load(out)["images"]
    assert images["one"].shape == (2, 16, 16, 3) and np.any(images["one"] != images["two"])
    assert running.refused(*command, f"--conditions={tmp_path / 'three.npz'}").flag == "--conditions"
    np.savez(tmp_path / "ids.npz", ids=np.zeros((1, 77), np.int32))
    assert running.refused(*command, f"--conditions={tmp_path / 'ids.npz'}").flag == "--conditions"
