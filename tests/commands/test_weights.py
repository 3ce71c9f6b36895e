"""Published weights as a person handles them: into a run, pictures from it, and out again."""

from __future__ import annotations

import json
import pathlib
import sys

import numpy as np
import pytest
from PIL import Image

from archirf_jax.interop import files
from tests import running
from tests.commands import inside
from tests.commands.alone import Command
from tests.golden import cases

IMPORT, EXPORT = Command("archirf_jax.import_weights"), Command("archirf_jax.export_weights")
GOLDEN = pathlib.Path(cases.__file__).parent
FEW = ("--solver=ddim", "--grid=4", "--guidance_scale=1", "--labels=0-1", "--per_class=2")
PICTURES = ("--source=dit", "--num_heads=4", "--image_size=16")


def tensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    return {name: np.asarray(tensor) for name, tensor in files.read(path).items()}


def weights(name: str, folder: pathlib.Path, **changes: np.ndarray) -> pathlib.Path:
    path = folder / f"{name}.safetensors"
    files.write(cases.load(GOLDEN / f"{name}.npz").params | changes, path)
    return path


def assert_same(first: pathlib.Path, second: pathlib.Path) -> None:
    ours, theirs = tensors(first), tensors(second)
    assert ours.keys() == theirs.keys() and len(ours) > 30
    assert all(ours[name].tobytes() == theirs[name].tobytes() for name in ours)


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Weights of a DiT for colour pictures of 16 pixels."""
    return weights("dit_patch4", tmp_path_factory.mktemp("given"))


@pytest.fixture(scope="module")
def run(given: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The run directory that the command makes of them, in a folder that is there and empty."""
    workdir = tmp_path_factory.mktemp("runs")
    command = [sys.executable, "-m", "archirf_jax.import_weights", f"--checkpoint={given}", f"--workdir={workdir}"]
    done = running.run([*command, *PICTURES])
    assert done.returncode == 0, done.stderr
    (workdir / "stderr.txt").write_text(done.stderr)
    return workdir


def test_an_import_tells_its_network_and_the_next_command(run: pathlib.Path) -> None:
    said = (run / "stderr.txt").read_text().splitlines()
    assert len(said) == 2 and said[0].endswith("dit with 0.3 M parameters")
    assert said[1] == f"next: python -m archirf_jax.sample --workdir={run} --out=samples.npz"
    config = json.loads((run / "config.json").read_text())
    assert config["imported"]["source"] == "dit" and config["data"]["num_classes"] == 5


def test_pictures_are_drawn_from_an_imported_run(run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    images, labels = inside.arrays(run, tmp_path, *FEW)
    assert images.shape == (4, 16, 16, 3) and labels.tolist() == [0, 0, 1, 1] and images.std() > 1
    inside.sample(run, f"--out={tmp_path / 'x.png'}", *FEW)
    with Image.open(tmp_path / "x.png") as grid:
        assert grid.mode == "RGB"


def test_of_a_network_of_latents_float32_arrays_are_drawn_and_no_picture(tmp_path: pathlib.Path) -> None:
    IMPORT(
        *("--source=dit", "--num_heads=3", "--image_size=8", f"--workdir={tmp_path / 'run'}"),
        f"--checkpoint={weights('dit_learn_sigma', tmp_path)}",
    )
    inside.sample(tmp_path / "run", f"--out={tmp_path / 'x.npz'}", *FEW)
    with np.load(tmp_path / "x.npz") as archive:
        latents = archive["images"]
    assert latents.shape == (4, 8, 8, 4) and latents.dtype == np.float32 and len(np.unique(latents)) > 100
    said = inside.complaint(tmp_path / "run", f"--out={tmp_path / 'x.png'}", *FEW)
    assert "--out: 4 channels are no picture" in said and ".npz" in said


def test_import_and_export_and_import_again_lose_nothing(
    run: pathlib.Path, given: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    first, second = tmp_path / "new" / "a.safetensors", tmp_path / "b.safetensors"
    EXPORT(f"--workdir={run}", f"--out={first}")
    assert_same(first, given)
    IMPORT(f"--checkpoint={first}", f"--workdir={tmp_path / 'again'}", *PICTURES)
    EXPORT(f"--workdir={tmp_path / 'again'}", f"--out={second}", "--step=0")
    assert first.read_bytes() == second.read_bytes()
    ours, _ = inside.arrays(run, tmp_path, *FEW)
    np.testing.assert_array_equal(inside.arrays(tmp_path / "again", tmp_path, *FEW)[0], ours)


def test_other_weights_in_the_file_are_other_pictures(
    run: pathlib.Path, given: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    embedding = tensors(given)["y_embedder.embedding_table.weight"].copy()
    embedding[1] *= -1
    changed = weights("dit_patch4", tmp_path, **{"y_embedder.embedding_table.weight": embedding})
    IMPORT(f"--checkpoint={changed}", f"--workdir={tmp_path / 'run'}", *PICTURES)
    ours, theirs = (inside.arrays(workdir, tmp_path, *FEW)[0] for workdir in (run, tmp_path / "run"))
    assert np.max(np.abs(ours - theirs)[:2]) <= 1 < 5 < np.max(np.abs(ours - theirs)[2:])


WRONG: dict[str, tuple[list[str], list[str]]] = {
    "no source": (["--source=dit2"], ["--source", "dit2", "adm-superres"]),
    "no heads": (["--num_heads=0"], ["--num_heads"]),
    "an unknown flag": (["--num_head=4"], ["num_head", "num_heads"]),
    "no file": (["--checkpoint=absent.pt"], ["--checkpoint: no file 'absent.pt'"]),
    "a file of another kind": (["--checkpoint=README.md"], ["--checkpoint: 'README.md' is not read", ".safetensors"]),
    "another source": (["--source=sd3"], ["no tensors of Stable Diffusion 3", "joint_blocks.0"]),
    "another network": (["--source=edm2"], ["no tensors of an EDM2 network"]),
    "heads that do not divide": (["--num_heads=5"], ["num_heads", "5"]),
    "images of another size": (["--image_size=18"], ["18"]),
    "a file in the place of the run": (["--workdir=README.md"], ["--workdir: 'README.md' exists"]),
    "a run in a file": (["--workdir=README.md/run"], ["--workdir: 'README.md/run' cannot be a run directory"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_imported_is_told_in_one_line_and_leaves_nothing(
    case: str, given: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    arguments, expected = WRONG[case]
    workdir = tmp_path / "run"
    said = IMPORT.complaint(f"--checkpoint={given}", f"--workdir={workdir}", *PICTURES, *arguments)
    assert all(word in said for word in expected), said
    assert not workdir.exists()


def test_tensors_that_do_not_fit_are_named_and_leave_nothing(tmp_path: pathlib.Path) -> None:
    wrong = {"blocks.1.attn.proj.bias": np.zeros(3), "pooler.weight": np.zeros((2, 2))}
    path = weights("dit_patch4", tmp_path, **wrong)
    said = IMPORT.complaint(f"--checkpoint={path}", f"--workdir={tmp_path / 'run'}", *PICTURES)
    assert "blocks.1.attn.proj.bias (3,) instead of (64,)" in said
    assert "1 without place in this network: pooler.weight" in said and not (tmp_path / "run").exists()


def test_a_directory_that_holds_something_is_left_as_it_is(given: pathlib.Path, tmp_path: pathlib.Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    said = IMPORT.complaint(f"--checkpoint={given}", f"--workdir={tmp_path}", *PICTURES)
    assert said.startswith("--workdir: ") and "exists and is not empty; give a new directory" in said
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("missing", ["source", "checkpoint", "workdir"])
def test_a_missing_flag_is_named(missing: str) -> None:
    flags = {"source": "dit", "checkpoint": "x.pt", "workdir": "x"}
    assert f"--{missing}" in IMPORT.complaint(*(f"--{name}={flags[name]}" for name in flags if name != missing))


EXPORT_WRONG = {
    "another suffix": (["--out=x.pt"], ["--out: 'x.pt' must end in .safetensors"]),
    "no suffix": (["--out=x"], ["--out: 'x' must end in .safetensors"]),
    "an unknown step": (["--step=7"], ["--step: no checkpoint of step 7; there are 0"]),
    "no run": (["--workdir=docs"], ["--workdir: 'docs' holds no run"]),
    "a place that is none": (["--out=/proc/x.safetensors"], ["--out: '/proc/x.safetensors' cannot be written"]),
}


@pytest.mark.parametrize("case", EXPORT_WRONG)
def test_what_cannot_be_exported_is_told_in_one_line(case: str, run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    arguments, expected = EXPORT_WRONG[case]
    out = tmp_path / "x.safetensors"
    said = EXPORT.complaint(f"--workdir={run}", f"--out={out}", *arguments)
    assert all(word in said for word in expected), said
    assert not out.exists()


@pytest.mark.parametrize(
    ("module", "arguments", "expected"),
    [
        ("import_weights", ["--source=dit", "--checkpoint=absent.pt", "--workdir=x"], "--checkpoint: no file"),
        ("import_weights", ["--checkpoint=absent.pt", "--workdir=x"], "--source is missing"),
        ("export_weights", ["--workdir=docs"], "--workdir: 'docs' holds no run"),
    ],
)
def test_the_line_comes_with_exit_code_2(module: str, arguments: list[str], expected: str) -> None:
    done = running.run([sys.executable, "-m", f"archirf_jax.{module}", *arguments])
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert done.stderr.startswith("error: ") and expected in done.stderr
