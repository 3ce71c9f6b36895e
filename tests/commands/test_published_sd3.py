"""Stable Diffusion 3 as a person handles it: a folder with T5 or without becomes a run, and a folder again."""

from __future__ import annotations

import json
import pathlib
import shutil
from typing import Any

import jax
import numpy as np
import pytest

from archirf_jax.launch import prompts
from archirf_jax.launch.runs import open_run
from tests import running
from tests.commands.test_published_systems import STEM, change, own_bytes, refused
from tests.golden import cases, pipelines

pytest.importorskip("tokenizers")
CASE = cases.load(pathlib.Path(cases.__file__).parent / "pipeline_sd35.npz")
PARTS = {"transformer": STEM, "vae": STEM, **{f"text_encoder{end}": "model" for end in ("", "_2", "_3")}}


def imported(folder: pathlib.Path, workdir: pathlib.Path) -> list[str]:
    """Import a folder; what the command says."""
    with running.messages() as said:
        running.call("import_weights", "--source=sd3", f"--checkpoint={folder}", f"--workdir={workdir}")
    return said


def without_t5(folder: pathlib.Path, place: pathlib.Path) -> pathlib.Path:
    ignored = shutil.ignore_patterns("text_encoder_3", "tokenizer_3")
    return pathlib.Path(shutil.copytree(folder, place, ignore=ignored))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return pipelines.write(CASE, tmp_path_factory.mktemp("published") / "sd35", np.float16)


@pytest.fixture(scope="module")
def workdir(folder: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("runs") / "sd35"
    assert "--prompt=" in imported(folder, workdir)[-1]
    return workdir


def test_three_encoders_become_frozen_runs_and_all_weights_keep_their_type(workdir: pathlib.Path) -> None:
    run = open_run(workdir)
    kinds = {name: one.config.model.name for name, one in run.runs.items()}
    assert kinds == {"autoencoder": "autoencoder_kl", **dict.fromkeys(("text", "text_2"), "clip_text")} | {
        "text_3": "t5_encoder"
    }
    for one in (run, *run.runs.values()):
        assert {leaf.dtype.name for leaf in jax.tree.leaves((one.params, one.shapes))} == {"float16"}
    assert (run.config.data.image_size, run.config.process.name) == (16, "rectified_flow")
    assert run.config.sample.grid.to_dict() == dict(name="shifted", shift=3.0, last=pytest.approx(3 / 1002))


@pytest.mark.slow
def test_prompts_are_drawn_by_the_run_alone(workdir: pathlib.Path, tmp_path: pathlib.Path) -> None:
    texts = ("--prompt=a red square", "--prompt=a blue house", "--negative_prompt=seas", "--guidance_scale=7")
    out = tmp_path / "x.npz"
    running.call("sample", f"--workdir={workdir}", "--steps=2", "--per_prompt=1", *texts, f"--out={out}")
    found = np.load(out)
    assert found["images"].shape == (2, 16, 16, 3) and found["prompts"].tolist() == ["a red square", "a blue house"]
    assert np.any(found["images"][0] != found["images"][1])


def test_a_run_goes_out_as_the_folder_that_it_came_from(
    workdir: pathlib.Path, folder: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    out = tmp_path / "again"
    running.call("export_weights", f"--workdir={workdir}", f"--out={out}")
    for part, stem in PARTS.items():
        file = f"{part}/{stem}.safetensors"
        assert own_bytes(out / file) == own_bytes(folder / file) and len(own_bytes(out / file)) > 20
    small = {path.relative_to(folder) for path in folder.rglob("*.json")}
    assert small == {path.relative_to(out) for path in out.rglob("*.json")} and len(small) > 10
    assert all((out / path).read_bytes() == (folder / path).read_bytes() for path in small)


@pytest.mark.slow
def test_without_t5_zeros_stand_for_its_tokens(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    given, workdir, out = without_t5(folder, tmp_path / "sd3"), tmp_path / "run", tmp_path / "again"
    assert any("text_encoder_3" in line for line in imported(given, workdir))
    run = open_run(workdir)
    task: Any = run.task
    batch, keys = prompts.batch_of(run, ["a cat"]), jax.random.split(jax.random.key(0), 1)
    made = jax.jit(lambda frozen: task.conditioner(frozen, batch, keys))(run.frozen)
    assert made["tokens"].shape == (1, 77 + 256, 40) and made["pooled"].shape == (1, 24)
    assert np.any(made["tokens"][:, :77, :28]) and bool(np.all(made["mask"]))
    assert not np.any(made["tokens"][:, :77, 28:]) and not np.any(made["tokens"][:, 77:])
    running.call("export_weights", f"--workdir={workdir}", f"--out={out}")
    index = json.loads((out / "model_index.json").read_text())
    assert index["text_encoder_3"] == [None, None] and not (out / "text_encoder_3").exists()
    assert index["transformer"] == ["diffusers", "SD3Transformer2DModel"]


def test_a_transformer_alone_takes_its_conditions_from_a_file(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    imported(folder / "transformer", tmp_path / "run")
    config = open_run(tmp_path / "run").config
    assert (config.data.image_size, config.data.channels, config.model.num_heads) == (8, 16, 2)
    assert config.conditioners.text.name == "given" and not config.frozen
    running.call("export_weights", f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'x.safetensors'}")
    assert own_bytes(tmp_path / "x.safetensors") == own_bytes(folder / "transformer" / f"{STEM}.safetensors")


@pytest.mark.parametrize("name", ["transformer", "vae", "text_encoder_2", "tokenizer_3", "scheduler"])
def test_a_folder_without_a_part_is_refused_by_its_name(
    name: str, folder: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    other = pathlib.Path(shutil.copytree(folder, tmp_path / "other"))
    shutil.rmtree(other / name)
    assert repr(name) in refused(other, source="sd3").line


def test_parts_that_do_not_belong_together_are_refused(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    other = pathlib.Path(shutil.copytree(folder, tmp_path / "other"))
    change(other / "transformer" / "config.json", joint_attention_dim=4096)
    assert "joint_attention_dim" in refused(other, source="sd3").line
    shutil.rmtree(other / "text_encoder_2")
    shutil.copytree(other / "text_encoder", other / "text_encoder_2")  # 16 + 16 channels, pooled 14 + 14
    shutil.copy(folder / "transformer" / "config.json", other / "transformer")
    assert "28 channels" in refused(other, source="sd3").line
    given = ("import_weights", "--source=sd3", f"--checkpoint={folder}", f"--workdir={tmp_path / 'run'}")
    assert running.refused(*given, "--prediction=eps").flag == "--prediction"
