"""The sample command: formats, labels, seeds, ways to sample, and that it needs nothing but a run directory."""

from __future__ import annotations

import importlib
import pathlib
import shutil
from typing import Any

import numpy as np
import pytest
from PIL import Image

import archirf_jax
from archirf_jax.launch.outputs import file_name
from archirf_jax.launch.run_flags import how
from archirf_jax.samplers.config import SamplerConfig
from archirf_jax.training import checksums
from configs import dit_rf
from tests import running
from tests.commands import drawing, saved
from tests.commands.drawing import PLAIN, arrays, refused

COMMAND = importlib.import_module("archirf_jax.sample")


def test_npz_holds_uint8_images_and_int32_labels_of_the_asked_classes(
    whole_run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    drawing.sample(whole_run, f"--out={tmp_path / 'new' / 'x.npz'}", "--labels=0-2,7", "--per_class=3")
    with np.load(tmp_path / "new" / "x.npz") as archive:
        images, labels = archive["images"], archive["labels"]
    assert images.shape == (12, 8, 8, 1) and images.dtype == np.uint8 and images.std() > 10
    assert labels.dtype == np.int32 and labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 7, 7, 7]


def test_arrays_may_have_the_names_that_guided_diffusions_evaluator_reads(
    whole_run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    few = (*PLAIN, "--labels=0,7", "--per_class=2")
    images, labels = arrays(whole_run, tmp_path, *few)
    drawing.sample(whole_run, *few, f"--out={tmp_path / 'y.npz'}", "--arr_0")
    with np.load(tmp_path / "y.npz") as archive:
        assert set(archive.files) == {"arr_0", "arr_1"} and archive["arr_0"].dtype == np.uint8
        np.testing.assert_array_equal(archive["arr_0"], images)
        np.testing.assert_array_equal(archive["arr_1"], labels)


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("more", [(), ("--to_seed=5",)])
def test_a_folder_holds_one_file_an_image_in_the_order_of_the_arrays(
    more: tuple[str, ...], there: bool, whole_run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    few = (*PLAIN, "--labels=7,0", "--per_class=3", "--batch_size=4", *more)
    images, labels = arrays(whole_run, tmp_path, *few)
    folder = tmp_path / "new" / "folder"
    if there:
        folder.mkdir(parents=True)
    drawing.sample(whole_run, *few, f"--out={folder}{'' if there else '/'}")
    files = sorted(folder.iterdir())
    assert [file.name for file in files] == [f"{i:06}_{label}.png" for i, label in enumerate(labels, 1)]
    np.testing.assert_array_equal(np.stack([np.asarray(Image.open(file)) for file in files]), images[..., 0])


def test_a_folder_that_holds_something_is_left_as_it_is(whole_run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    for out in (tmp_path, f"{tmp_path}/", f"{tmp_path / 'mine.txt'}/"):
        assert refused(whole_run, *PLAIN, f"--out={out}").flag == "--out"
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


def test_what_the_disk_has_no_room_for_is_refused_before_anything_is_drawn(
    whole_run: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=4096 * 20 - 1))
    for out, refuses in ((f"{tmp_path}/x/", True), (f"{tmp_path}/x.npz", False)):
        arguments = (*PLAIN, "--labels=0-1", "--per_class=10", f"--out={out}")
        if refuses:
            assert refused(whole_run, *arguments).flag == "--out"
        else:
            drawing.sample(whole_run, *arguments)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("cat", "cat"),
        ("tench, Tinca tinca", "tench-Tinca-tinca"),
        ("../../etc/passwd", "etc-passwd"),
        ("a/b\\c:d*e\n", "a-b-c-d-e"),
        ("..", "unnamed"),
        ("", "unnamed"),
        ("größe", "größe"),
        ("x" * 300, "x" * 60),
    ],
)
def test_names_of_classes_become_parts_of_names_of_files(text: str, name: str) -> None:
    assert file_name(text) == name


def test_the_command_and_the_library_draw_the_same(whole_run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    ours, _ = arrays(whole_run, tmp_path, *PLAIN, "--labels=0,7", "--per_class=2", "--seed=3")
    options: dict[str, Any] = dict(solver="euler", steps=4, guidance_scale=1)
    theirs = archirf_jax.open(whole_run).sample(labels=[0, 7], per_class=2, seed=3, **options)
    np.testing.assert_array_equal(ours, theirs)
    assert callable(archirf_jax.sample)  # the sampler, also when the command of that name is imported


@pytest.mark.parametrize(
    "solver",
    [
        PLAIN,
        ("--solver=ddpm", "--steps=4"),
        ("--solver=euler_maruyama", "--eta=0.5", "--steps=4"),
        ("--solver=edm", "--grid=karras", "--churn=3", "--steps=4"),
    ],
    ids=lambda solver: solver[0],
)
def test_an_image_depends_on_label_number_and_seed_but_not_on_its_batch(
    solver: tuple[str, ...], whole_run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    many, _ = arrays(whole_run, tmp_path, *solver, "--labels=6-7", "--per_class=3", "--batch_size=4")
    fewer = (*solver, "--labels=5,7", "--per_class=2", "--batch_size=3")
    few, _ = arrays(whole_run, tmp_path, *fewer)
    assert np.max(np.abs(many[3:5] - few[2:])) <= 1  # another batch size may round the last bit elsewhere
    other, _ = arrays(whole_run, tmp_path, *fewer, "--seed=1")
    assert np.max(np.abs(other - few)) > 10


def test_a_grid_has_one_row_a_class_and_a_gif_one_frame_a_state(
    whole_run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    few = (*PLAIN, "--labels=0-1", "--per_class=3", "--steps=6")
    for name in ("x.png", "x.gif"):
        drawing.sample(whole_run, *few, f"--out={tmp_path / name}")
    with Image.open(tmp_path / "x.png") as grid, Image.open(tmp_path / "x.gif") as animation:
        assert grid.size == animation.size == (3 * 40 + 2, 2 * 40 + 1)
        assert animation.n_frames == 7
        animation.seek(6)
        np.testing.assert_allclose(np.asarray(animation.convert("L"), int), np.asarray(grid, int), atol=1)
    for stride, frames in ((4, 3), (100, 2)):  # every so many states, and the first and the last
        drawing.sample(whole_run, *few, f"--out={tmp_path / 'x.gif'}", f"--stride={stride}")
        with Image.open(tmp_path / "x.gif") as animation:
            assert animation.n_frames == frames


def test_it_needs_nothing_but_the_average_and_the_saved_configuration(
    whole_run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    def others(folder: str, names: list[str]) -> list[str]:
        """What a copy leaves out: all but the average of step 60 and config.json."""
        place = pathlib.Path(folder).relative_to(whole_run)
        kept = {".": ["config.json", "checkpoints"], "checkpoints": ["60"]}
        step = ["model.averages.ema", "_CHECKPOINT_METADATA", checksums.FILE]
        own = kept.get(str(place), step if place == pathlib.Path("checkpoints/60") else names)
        return [name for name in names if name not in own]

    bare = shutil.copytree(whole_run, tmp_path / "bare", ignore=others)
    (bare / "checkpoints" / "60" / checksums.FILE).unlink()
    checksums.write(bare / "checkpoints" / "60")
    ours, theirs = (arrays(run, tmp_path, *PLAIN, "--labels=0-3")[0] for run in (bare, whole_run))
    assert np.array_equal(ours, theirs)


def test_another_average_of_the_run_is_drawn_with_by_its_name(whole_run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    def averaging(folder: pathlib.Path, name: str) -> pathlib.Path:
        """A copy of the run in which the average of this name is the last parameters."""
        step = shutil.copytree(whole_run, folder) / "checkpoints" / "60"
        shutil.rmtree(step / f"model.averages.{name}", ignore_errors=True)
        shutil.copytree(step / "model.params", step / f"model.averages.{name}")
        checksums.write(step)
        return folder

    several, instead = averaging(tmp_path / "several", "decay_0.9"), averaging(tmp_path / "instead", "ema")
    few = (*PLAIN, "--labels=0-3", "--per_class=1")
    ours, theirs, usual = (
        arrays(run, tmp_path, *few, *more)[0]
        for run, more in ((several, ("--ema=decay_0.9",)), (instead, ()), (several, ()))
    )
    np.testing.assert_array_equal(ours, theirs)
    assert np.any(ours != usual)
    line = refused(several, "--ema=decay_0.5").line
    assert "'decay_0.5'" in line and "ema, decay_0.9" in line


# Flag -> its text, and the field of how to sample that it sets with its value.
FIELDS: dict[str, tuple[str, str, Any]] = {
    "solver": ("heun", "solver.name", "heun"),
    "steps": ("7", "steps", 7),
    "grid": ("karras", "grid.name", "karras"),
    "threshold": ("dynamic", "threshold", "dynamic"),
    "classifier_scale": ("2.5", "classifier_scale", 2.5),
    "strength": ("0.5", "strength", 0.5),
    "guidance": ("adaptive_projected", "guidance.name", "adaptive_projected"),
    "guidance_scale": ("4", "guidance.scale", 4.0),
    "guidance_interval": ("0.2,0.8", "guidance.interval", (0.2, 0.8)),
    "guidance_rescale": ("0.7", "guidance.rescale", 0.7),
    "shift": ("3", "grid.shift", 3.0),
    "eta": ("0.5", "solver.eta", 0.5),
    "churn": ("2", "solver.churn", 2.0),
    "apg_eta": ("0.1", "guidance.eta", 0.1),
    "apg_norm_threshold": ("5", "guidance.norm_threshold", 5.0),
    "apg_momentum": ("-0.5", "guidance.momentum", -0.5),
    "sample.solver.churn": ("40", "solver.churn", 40),
    "sample.guidance.scale": ("2", "guidance.scale", 2),
}
OWNERS = {"shift": {"grid": "shifted"}, "eta": {"solver": "ddim"}, "churn": {"solver": "edm", "grid": "karras"}}
OWNERS |= {f"apg_{name}": {"guidance": "adaptive_projected"} for name in ("eta", "norm_threshold", "momentum")}
OWNERS["sample.solver.churn"] = OWNERS["churn"]


def flat(config: SamplerConfig) -> dict[str, Any]:
    groups = config.to_dict()
    nested = {
        f"{group}.{name}": value
        for group in ("solver", "grid", "guidance")
        for name, value in groups.pop(group).items()
    }
    return groups | nested


@pytest.mark.parametrize("name", FIELDS)
def test_a_flag_sets_its_field_and_no_other(name: str) -> None:
    text, field, value = FIELDS[name]
    own = SamplerConfig().replace(**OWNERS.get(name, {}))
    given = () if name != "classifier_scale" else ("--classifier=x",)
    changed = own.replace(**how(COMMAND.COMMAND.parse(["--workdir=x", f"--{name}={text}", *given])))
    assert flat(changed) == flat(own) | {field: value}


def test_a_field_that_has_no_flag_reaches_the_solver(whole_run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    edm = ("--solver=edm", "--grid=karras", "--steps=4", "--labels=0,7", "--per_class=2")
    still, *noisy = (
        arrays(whole_run, tmp_path, *edm, *more)[0]
        for more in (
            (),
            ("--sample.solver.churn=40",),
            ("--churn=40",),
            ("--churn=40", "--sample.solver.churn_noise=1.5"),
        )
    )
    np.testing.assert_array_equal(noisy[0], noisy[1])
    assert np.max(np.abs(noisy[0] - still)) > 5 and np.max(np.abs(noisy[0] - noisy[2])) > 5


def test_guidance_moves_from_the_weaker_network_of_an_earlier_step_or_another_run(
    whole_run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    def drawn(*arguments: str) -> np.ndarray:
        common = ("--solver=euler", "--steps=4", "--labels=0,7", "--per_class=2")
        return arrays(whole_run, tmp_path, *common, *arguments)[0]

    auto = ("--guidance=autoguidance", "--guidance_scale=3")
    plain = drawn("--guidance_scale=1")
    # f + 3 (f - f) = f: a network that is as good pulls nowhere.
    assert np.max(np.abs(drawn(*auto, "--weak_step=60") - plain)) <= 1
    earlier = drawn(*auto, "--weak_step=20")
    assert np.max(np.abs(earlier - plain)) > 5
    copy = shutil.copytree(whole_run, tmp_path / "copy")
    shutil.rmtree(copy / "checkpoints" / "60")
    shutil.rmtree(copy / "checkpoints" / "40")
    np.testing.assert_array_equal(drawn(*auto, f"--weak_workdir={copy}"), earlier)
    assert np.any(drawn("--guidance_scale=3") != plain)
    saved.save(dit_rf, tmp_path / "other", saved.TINY_DIT | {"model.hidden_size": 64})
    assert np.max(np.abs(drawn(*auto, f"--weak_workdir={tmp_path / 'other'}") - plain)) > 5


def test_a_weaker_network_of_another_process_or_other_images_is_refused(
    whole_run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    auto = ("--guidance=autoguidance", "--guidance_scale=2", f"--weak_workdir={tmp_path / 'other'}")
    assert refused(whole_run, *auto).flag == "--weak_workdir"
    for number, (field, value) in enumerate({"data.image_size": 16, "process.time_scale": 1.0}.items()):
        other = saved.change(shutil.copytree(whole_run, tmp_path / str(number)), {field: value})
        refusal = refused(whole_run, *auto[:2], f"--weak_workdir={other}")
        assert refusal.flag == "--weak_workdir" and field in refusal.line and f"{value!r} there" in refusal.line
    (tmp_path / "other").mkdir()
    shutil.copy(whole_run / "config.json", tmp_path / "other")
    assert refused(whole_run, *auto).flag == "--weak_workdir"  # it has no checkpoint


@pytest.mark.parametrize("field", ["process.time_scale", "process.path"])
def test_a_configuration_that_says_something_else_than_the_checkpoint_is_refused(
    field: str, whole_run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    values = {"process.time_scale": 500.0, "process.path": "gvp"}
    copy = saved.change(shutil.copytree(whole_run, tmp_path / "copy"), {field: values[field]})
    refusal = refused(copy, *PLAIN, "--per_class=1")
    assert refusal.flag == "--workdir" and field in refusal.line and str(values[field]) in refusal.line


def test_how_a_network_is_computed_and_sampled_may_be_changed_afterwards(
    whole_run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    changes = {"sample.steps": 3, "model.remat": True, "objective.condition_dropout": 0.2}
    copy = saved.change(shutil.copytree(whole_run, tmp_path / "copy"), changes)
    running.call("sample", f"--workdir={copy}", f"--out={tmp_path / 'x.npz'}", "--labels=0", "--per_class=1")


NAMES = ["ant", "3", "bee"]


@pytest.mark.parametrize(
    ("text", "labels"),
    [("0-2,7", [0, 1, 2, 7]), ("3", [3]), ("bee,ant", [2, 0]), ("1,bee", [1, 2]), ("3-3", [3]), (None, None)],
)
def test_labels_are_numbers_ranges_and_names(text: str | None, labels: list[int] | None) -> None:
    assert COMMAND.parse_labels(text, NAMES) == labels


# Arguments -> the flag that the answer names.
BAD: dict[str, str] = {
    **dict.fromkeys(
        [
            "--labels=" + text
            for text in (
                "0-10",
                "10",
                "a",
                "1,,2",
                "5-3",
                "-1",
                "1-2-3",
                "²",
                "3,3",
                "0-2,1",
                "0-99999999999",
                "0-99999999",
            )
        ],
        "--labels",
    ),
    "--labels=": "--labels",
    "--out=x.jpg": "--out",
    "--out=~nobody_has_this_name/x.png": "--out",
    "--out=README.md/x.png": "--out",
    "--step=7": "--step",
    "--steps=0": "--steps",
    "--per_class=0": "--per_class",
    "--per_class=10000": "--per_class",  # wider than a picture may be
    "--solver=eular": "--solver",
    "--guidance_scale=nan": "--guidance_scale",
    "--guidance_scale=-1": "--guidance_scale",
    "--solver=euler --eta=0.5": "--eta",
    "--solver=heun --churn=3": "--churn",
    "--solver=ddim --eta=1.5": "--eta",
    "--sample.solver.chrun=3": "config.sample.solver.chrun",
    "--sample.steps=many": "--steps",
    "--grid=unifrom": "--grid",
    "--grid=trailing": "--grid",
    "--grid=250": "--grid",
    "--grid=uniform --shift=3": "--shift",
    "--guidance=free": "--guidance",
    "--threshold=foo": "--threshold",
    "--guidance_interval=0.8,0.2": "--guidance_interval",
    "--guidance_interval=abc": "--guidance_interval",
    "--guidance_interval=0.5": "--guidance_interval",
    "--guidance=adaptive_projected --guidance_rescale=0.5": "--guidance_rescale",
    "--guidance=autoguidance --guidance_scale=2": "--guidance",
    "--weak_step=20": "--weak_workdir",
    "--guidance=autoguidance --guidance_scale=2 --weak_step=7": "--weak_step",
    "--stride=2 --out=x.png": "--stride",
    "--out=x": "--out",
    "--arr_0 --out=x.png": "--arr_0",
    "--arr_0 --out=x/": "--arr_0",
    "--arr_0 --image=1 --out=x.npz": "--arr_0",
    "--stride=2 --out=x/": "--stride",
    "--stride=0 --out=x.gif": "--stride",
    "--batch_size=0": "--batch_size",
}


@pytest.mark.parametrize("arguments", BAD)
def test_bad_input_is_answered_in_one_line_that_names_the_flag(arguments: str, whole_run: pathlib.Path) -> None:
    refusal = refused(whole_run, *arguments.split(" "))
    assert refusal.flag == BAD[arguments], refusal


def test_the_line_comes_with_exit_code_2(tmp_path: pathlib.Path) -> None:
    done = running.run("sample", f"--workdir={tmp_path}")
    assert done.returncode == 2 and done.stderr.startswith("error: --workdir: ") and done.stderr.count("\n") == 1


def test_a_directory_without_a_run_or_without_a_checkpoint_is_refused(
    whole_run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    assert refused(tmp_path).flag == "--workdir"
    shutil.copy(whole_run / "config.json", tmp_path)
    assert refused(tmp_path).flag == "--workdir"
