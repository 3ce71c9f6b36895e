"""Published weights as a person handles them: into a run, images from it, and out again."""

from __future__ import annotations

import json
import pathlib
import shlex

import jax
import numpy as np
import pytest
from PIL import Image

from archirf_jax.interop import files
from archirf_jax.launch.runs import open_run
from tests import running
from tests.commands import drawing
from tests.golden import cases

GOLDEN = pathlib.Path(cases.__file__).parent
FEW = ("--solver=ddim", "--grid=4", "--guidance_scale=1", "--labels=0-1", "--per_class=2")
IMAGES = ("--source=dit", "--num_heads=4", "--image_size=16")


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


def imported(workdir: pathlib.Path, *arguments: str) -> None:
    running.call("import_weights", f"--workdir={workdir}", *arguments)


def exported(workdir: pathlib.Path, *arguments: str) -> None:
    running.call("export_weights", f"--workdir={workdir}", *arguments)


def test_an_import_that_was_cut_short_leaves_no_run_and_begins_again(
    given: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workdir = tmp_path / "run"

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("archirf_jax.launch.config.save", full)
        refusal = refused(workdir, *IMAGES, f"--checkpoint={given}")
    assert refusal.flag == "--workdir" and not list(tmp_path.iterdir())
    killed = tmp_path / ".run.part" / "checkpoints" / "0"
    killed.mkdir(parents=True)
    (killed / "half").write_text("")
    imported(workdir, *IMAGES, f"--checkpoint={given}")
    assert [path.name for path in tmp_path.iterdir()] == ["run"] and (workdir / "config.json").is_file()


def test_weights_of_a_wrapped_network_come_back_under_their_names(given: pathlib.Path, tmp_path: pathlib.Path) -> None:
    wrapped = tmp_path / "wrapped.safetensors"
    files.write({f"module._orig_mod.{name}": value for name, value in tensors(given).items()}, wrapped)
    imported(tmp_path / "run", *IMAGES, f"--checkpoint={wrapped}")
    exported(tmp_path / "run", f"--out={tmp_path / 'again.safetensors'}")
    assert_same(wrapped, tmp_path / "again.safetensors")


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(wrong: float, tmp_path: pathlib.Path) -> None:
    name = "blocks.1.attn.qkv.bias"
    bias = np.array(cases.load(GOLDEN / "dit_patch4.npz").params[name])
    bias[3] = wrong
    refusal = refused(tmp_path / "run", *IMAGES, f"--checkpoint={weights('dit_patch4', tmp_path, **{name: bias})}")
    assert refusal.flag == "--checkpoint" and name in refusal.line and not (tmp_path / "run").exists()


def test_a_name_with_a_huge_number_is_refused_at_once(tmp_path: pathlib.Path) -> None:
    name = f"blocks.{10**12}.attn.qkv.bias"
    path = weights("dit_patch4", tmp_path, **{name: np.zeros(3, np.float32)})
    refusal = refused(tmp_path / "run", *IMAGES, f"--checkpoint={path}")
    assert refusal.flag == "--checkpoint" and name in refusal.line


def refused(workdir: pathlib.Path, *arguments: str) -> running.Refusal:
    return running.refused("import_weights", f"--workdir={workdir}", *arguments)


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Weights of a DiT for colour images of 16 pixels."""
    return weights("dit_patch4", tmp_path_factory.mktemp("given"))


@pytest.fixture(scope="module")
def run(given: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The run directory that the command makes of them, in a folder that is there and empty."""
    workdir = tmp_path_factory.mktemp("runs")
    with running.messages() as said:
        imported(workdir, f"--checkpoint={given}", *IMAGES)
    (workdir / "messages.txt").write_text("\n".join(said))
    return workdir


def test_an_import_names_its_network_and_the_next_command(run: pathlib.Path) -> None:
    *_, first, second = (run / "messages.txt").read_text().splitlines()
    assert first.endswith("dit with 0.3 M parameters")
    assert second == f"next: python -m archirf_jax.sample --workdir={run} --out=samples.npz"
    config = json.loads((run / "config.json").read_text())
    assert config["imported"]["source"] == "dit" and config["data"]["num_classes"] == 5


def test_the_next_command_can_be_pasted_whatever_the_path_is(given: pathlib.Path, tmp_path: pathlib.Path) -> None:
    with running.messages() as said:
        imported(tmp_path / "my run", f"--checkpoint={given}", *IMAGES)
    assert f"--workdir={tmp_path / 'my run'}" in shlex.split(said[-1])


def test_images_are_drawn_from_an_imported_run(run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    images, labels = drawing.arrays(run, tmp_path, *FEW)
    assert images.shape == (4, 16, 16, 3) and labels.tolist() == [0, 0, 1, 1] and images.std() > 1
    drawing.sample(run, f"--out={tmp_path / 'x.png'}", *FEW)
    with Image.open(tmp_path / "x.png") as grid:
        assert grid.mode == "RGB"


def test_of_a_network_of_latents_float32_arrays_are_drawn_and_not_a_grid(tmp_path: pathlib.Path) -> None:
    latents = ("--source=dit", "--num_heads=3", "--image_size=8")
    imported(tmp_path / "run", f"--checkpoint={weights('dit_learn_sigma', tmp_path)}", *latents)
    drawing.sample(tmp_path / "run", f"--out={tmp_path / 'x.npz'}", *FEW)
    with np.load(tmp_path / "x.npz") as archive:
        latents = archive["images"]
    assert latents.shape == (4, 8, 8, 4) and latents.dtype == np.float32 and len(np.unique(latents)) > 100
    assert drawing.refused(tmp_path / "run", f"--out={tmp_path / 'x.png'}", *FEW).flag == "--out"


def test_import_and_export_and_import_again_lose_nothing(
    run: pathlib.Path, given: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    first, second = tmp_path / "new" / "a.safetensors", tmp_path / "b.safetensors"
    exported(run, f"--out={first}")
    assert_same(first, given)
    imported(tmp_path / "again", f"--checkpoint={first}", *IMAGES)
    exported(tmp_path / "again", f"--out={second}", "--step=0")
    assert first.read_bytes() == second.read_bytes()
    ours, _ = drawing.arrays(run, tmp_path, *FEW)
    np.testing.assert_array_equal(drawing.arrays(tmp_path / "again", tmp_path, *FEW)[0], ours)


def test_other_weights_in_the_file_are_other_images(
    run: pathlib.Path, given: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    embedding = tensors(given)["y_embedder.embedding_table.weight"].copy()
    embedding[1] *= -1
    changed = weights("dit_patch4", tmp_path, **{"y_embedder.embedding_table.weight": embedding})
    imported(tmp_path / "run", f"--checkpoint={changed}", *IMAGES)
    ours, theirs = (drawing.arrays(workdir, tmp_path, *FEW)[0] for workdir in (run, tmp_path / "run"))
    assert np.max(np.abs(ours - theirs)[:2]) <= 1 < 5 < np.max(np.abs(ours - theirs)[2:])


# Arguments -> the flag or field that the answer names ("" for none).
BAD = {
    "--source=dit2": "--source",
    "--num_heads=0": "--num_heads",
    "--num_head=4": "",
    "--checkpoint=absent.pt": "--checkpoint",
    "--checkpoint=README.md": "--checkpoint",
    "--source=sd3": "--checkpoint",
    "--source=edm2": "--checkpoint",
    "--num_heads=5": "--num_heads",
    "--image_size=18": "config.model.patch_size",
    "--image_size=100000": "--image_size",
    "--workdir=README.md": "--workdir",
    "--workdir=README.md/run": "--workdir",
    "--workdir=lr[1e-4]": "--workdir",
}


@pytest.mark.parametrize("argument", BAD)
def test_what_cannot_be_imported_is_refused_and_leaves_nothing(
    argument: str, given: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    workdir = tmp_path / "run"
    refusal = refused(workdir, f"--checkpoint={given}", *IMAGES, argument)
    assert refusal.flag == BAD[argument], refusal
    assert not workdir.exists() and not pathlib.Path("lr[1e-4]").exists()


def test_tensors_that_do_not_fit_are_named_and_leave_nothing(tmp_path: pathlib.Path) -> None:
    wrong = {"blocks.1.attn.proj.bias": np.zeros(3), "pooler.weight": np.zeros((2, 2))}
    path = weights("dit_patch4", tmp_path, **wrong)
    refusal = refused(tmp_path / "run", f"--checkpoint={path}", *IMAGES)
    assert refusal.flag == "--checkpoint" and not (tmp_path / "run").exists()
    assert "blocks.1.attn.proj.bias (3,)" in refusal.line and "pooler.weight" in refusal.line


def test_a_directory_that_holds_something_is_left_as_it_is(given: pathlib.Path, tmp_path: pathlib.Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert refused(tmp_path, f"--checkpoint={given}", *IMAGES).flag == "--workdir"
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("missing", ["source", "checkpoint", "workdir"])
def test_a_missing_flag_is_named(missing: str) -> None:
    flags = {"source": "dit", "checkpoint": "x.pt", "workdir": "x"}
    refusal = running.refused("import_weights", *(f"--{name}={flags[name]}" for name in flags if name != missing))
    assert refusal.flag == f"--{missing}"


# Arguments -> the flag that the answer names.
BAD_EXPORTS = {
    "--out=x.pt": "--out",
    "--out=x": "--out",
    "--out=/proc/x.safetensors": "--out",
    "--step=7": "--step",
    "--workdir=docs": "--workdir",
}


@pytest.mark.parametrize("argument", BAD_EXPORTS)
def test_what_cannot_be_exported_is_refused(argument: str, run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    out = tmp_path / "x.safetensors"
    refusal = running.refused("export_weights", f"--workdir={run}", f"--out={out}", argument)
    assert refusal.flag == BAD_EXPORTS[argument], refusal
    assert not out.exists()


def test_lpips_of_two_files_becomes_a_run_that_others_name_and_is_exported_again(tmp_path: pathlib.Path) -> None:
    """torchvision's backbone and the heads that the package ships."""
    case = cases.load(GOLDEN / "lpips_alex.npz")
    given = case.params
    heads = {name: value for name, value in given.items() if name.startswith("lin")}
    backbone = {f"features.{name.split('.', 2)[2]}": given[name] for name in given if name not in heads}
    for name, state in {"backbone": backbone, "heads": heads, "both": backbone | heads}.items():
        files.write(state, tmp_path / f"{name}.safetensors")
    flags = ("--source=lpips", f"--checkpoint={tmp_path / 'backbone.safetensors'}")
    assert refused(tmp_path / "run", *flags).flag == "--checkpoint"
    with running.messages() as said:
        imported(tmp_path / "run", *flags, f"--heads={tmp_path / 'heads.safetensors'}")
    assert said[-1].endswith(f"--config.frozen.NAME={tmp_path / 'run'}")
    run = open_run(tmp_path / "run")
    a, b = (case.inputs[name].transpose(0, 2, 3, 1) for name in ("a", "b"))
    found = jax.jit(run.task.model.apply)({"params": run.params["model"]}, a, b)
    assert cases.relative_error(np.asarray(found), case.outputs["distance"]) < 1e-4
    exported(tmp_path / "run", f"--out={tmp_path / 'again.safetensors'}")
    ours, theirs = tensors(tmp_path / "again.safetensors"), tensors(tmp_path / "both.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(ours[name].tobytes() == theirs[name].tobytes() for name in ours)


@pytest.mark.parametrize(
    ("name", "hints"),
    [
        pytest.param("vae_sdxl", ("--source=vae", "--scaling_factor=0.13025"), marks=pytest.mark.slow),
        ("vq_model", ("--source=vq",)),
    ],
)
def test_an_imported_autoencoder_gives_an_image_back_and_its_tensors(
    name: str, hints: tuple[str, ...], tmp_path: pathlib.Path
) -> None:
    given = weights(name, tmp_path)
    with running.messages() as said:
        imported(tmp_path / "run", f"--checkpoint={given}", *hints, "--norm_num_groups=8", "--image_size=16")
    assert "--image=FILE.png" in said[-1]
    Image.fromarray(np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)).save(tmp_path / "x.png")
    drawing.sample(tmp_path / "run", f"--image={tmp_path / 'x.png'}", f"--out={tmp_path / 'y.png'}")
    with Image.open(tmp_path / "y.png") as grid:
        assert grid.mode == "RGB" and grid.height >= 16
    exported(tmp_path / "run", f"--out={tmp_path / 'again.safetensors'}")
    assert_same(given, tmp_path / "again.safetensors")
