"""The sample command: formats, labels, seeds, ways to sample, and that it needs nothing but a run directory."""

from __future__ import annotations

import json
import pathlib
import shutil
import types
from typing import Any

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from PIL import Image

from archirf_jax import sample as command
from archirf_jax.errors import UserError
from archirf_jax.sample import parse_labels
from archirf_jax.samplers.choice import Choice
from archirf_jax.training import checksums
from configs import dit_rf
from tests import running
from tests.commands import inside, saved
from tests.commands.inside import PLAIN, complaint


def arrays(workdir: pathlib.Path, out: pathlib.Path, *extra: str) -> tuple[np.ndarray, np.ndarray]:
    done = running.sample(workdir, f"--out={out}", *extra)
    assert done.returncode == 0, done.stderr
    with np.load(out) as archive:
        return archive["images"], archive["labels"]


def test_npz_holds_uint8_images_and_int32_labels_of_the_asked_classes(
    whole_run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    images, labels = arrays(whole_run, tmp_path / "x.npz", "--labels=0-2,7", "--per_class=3")
    assert images.shape == (12, 8, 8, 1) and images.dtype == np.uint8
    assert labels.dtype == np.int32 and labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 7, 7, 7]
    assert images.std() > 10


def test_inside_this_process_it_is_the_same_command(whole_run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    more = ("--labels=0,7", "--per_class=2", "--seed=3", "--solver=ddpm", "--threshold=static")
    ours, labels = inside.arrays(whole_run, tmp_path, *more)
    theirs, same = arrays(whole_run, tmp_path / "y.npz", *more)
    assert np.max(np.abs(ours - theirs)) <= 1 and labels.tolist() == same.tolist()


@pytest.mark.parametrize(
    "solver",
    [
        PLAIN,
        ("--solver=ddpm", "--steps=4"),
        ("--solver=ddim", "--eta=0.7", "--steps=4"),
        ("--solver=euler_maruyama", "--eta=0.5", "--steps=4"),
        ("--solver=edm", "--grid=karras", "--churn=3", "--steps=4"),
    ],
    ids=lambda solver: solver[0],
)
def test_a_picture_depends_on_label_number_and_seed_but_not_on_its_batch(
    solver: tuple[str, ...], whole_run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    many, _ = inside.arrays(whole_run, tmp_path, *solver, "--labels=6-7", "--per_class=3", "--batch_size=4")
    fewer = (*solver, "--labels=5,7", "--per_class=2", "--batch_size=3")
    few, _ = inside.arrays(whole_run, tmp_path, *fewer)
    assert np.max(np.abs(many[3:5] - few[2:])) <= 1  # another batch size may round the last bit elsewhere
    other, _ = inside.arrays(whole_run, tmp_path, *fewer, "--seed=1")
    assert np.max(np.abs(other - few)) > 10


def test_a_grid_has_one_row_a_class_and_a_gif_one_frame_a_state(
    whole_run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    for name in ("x.png", "x.gif"):
        inside.sample(whole_run, *PLAIN, f"--out={tmp_path / name}", "--labels=0-1", "--per_class=3", "--steps=6")
    with Image.open(tmp_path / "x.png") as grid, Image.open(tmp_path / "x.gif") as animation:
        assert grid.size == animation.size == (3 * 40 + 2, 2 * 40 + 1)
        assert animation.n_frames == 7
        animation.seek(6)
        np.testing.assert_allclose(np.asarray(animation.convert("L"), int), np.asarray(grid, int), atol=1)


@pytest.mark.parametrize(("stride", "frames"), [(4, 3), (100, 2)])
def test_a_gif_may_show_every_so_many_states_beside_the_first_and_the_last(
    stride: int, frames: int, whole_run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    out = tmp_path / "x.gif"
    inside.sample(whole_run, *PLAIN, f"--out={out}", "--labels=0", "--per_class=2", "--steps=6", f"--stride={stride}")
    with Image.open(out) as animation:
        assert animation.n_frames == frames


def test_it_needs_nothing_but_the_ema_weights_and_the_saved_configuration(
    whole_run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    bare = tmp_path / "bare"
    for name in ("config.json", "checkpoints/60/_CHECKPOINT_METADATA", "checkpoints/60/commit_success.txt"):
        if (whole_run / name).exists():
            (bare / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(whole_run / name, bare / name)
    shutil.copytree(whole_run / "checkpoints/60/ema", bare / "checkpoints/60/ema")
    ours, _ = inside.arrays(bare, tmp_path, *PLAIN, "--labels=0-3")
    theirs, _ = inside.arrays(whole_run, tmp_path, *PLAIN, "--labels=0-3")
    assert np.array_equal(ours, theirs)


FIELDS: dict[str, tuple[str, Any]] = {
    "solver": ("heun", "heun"),
    "steps": ("7", 7),
    "grid": ("karras", "karras"),
    "shift": ("3", 3.0),
    "eta": ("0.5", 0.5),
    "churn": ("2", 2.0),
    "guidance": ("adaptive_projected", "adaptive_projected"),
    "guidance_scale": ("4", 4.0),
    "guidance_interval": ("0.2,0.8", (0.2, 0.8)),
    "guidance_rescale": ("0.7", 0.7),
    "guidance_parallel": ("0.1", 0.1),
    "guidance_longest": ("5", 5.0),
    "guidance_momentum": ("-0.5", -0.5),
    "classifier_scale": ("2.5", 2.5),
    "threshold": ("dynamic", "dynamic"),
}
OWN = Choice(solver="ddim", eta=0.25, grid="shifted", shift=2.0, guidance_rescale=0.5, guidance_interval=(0.1, 0.9))


def chosen(own: Choice, **given: str) -> Choice:
    """What the command makes of a run's own choice and flags."""
    with flagsaver.flagsaver():
        flags.FLAGS.mark_as_parsed()
        for name, value in given.items():
            flags.FLAGS[name].parse(value)
        return command.RUN.chosen(types.SimpleNamespace(choice=own))  # type: ignore[arg-type]


def test_another_average_of_the_run_is_drawn_with_by_its_name(whole_run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    def beside(folder: pathlib.Path, name: str) -> pathlib.Path:
        """A copy of the run in which an average of this name holds the last parameters."""
        step = shutil.copytree(whole_run, folder) / "checkpoints" / "60"
        (step / checksums.FILE).unlink()
        shutil.rmtree(step / name, ignore_errors=True)
        shutil.copytree(step / "params", step / name)
        return folder

    several, instead = beside(tmp_path / "several", "decay_0.9"), beside(tmp_path / "instead", "ema")
    few = (*PLAIN, "--labels=0-3", "--per_class=1")
    ours, _ = inside.arrays(several, tmp_path, *few, "--ema=decay_0.9")
    theirs, _ = inside.arrays(instead, tmp_path, *few)
    usual, _ = inside.arrays(several, tmp_path, *few)
    np.testing.assert_array_equal(ours, theirs)
    assert np.any(ours != usual)
    assert "there is no average 'decay_0.5' in it; there are ema, decay_0.9" in complaint(several, "--ema=decay_0.5")


def test_every_flag_sets_its_field_and_no_other() -> None:
    assert set(FIELDS) == set(command.RUN.choice) == {*Choice.__dataclass_fields__} - {"strength"}
    assert chosen(Choice()) == Choice()
    projected = Choice(guidance="adaptive_projected")
    for name, (text, value) in FIELDS.items():
        own = projected if name in ("guidance_parallel", "guidance_longest", "guidance_momentum") else Choice()
        assert vars(chosen(own, **{name: text})) == {**vars(own), name: value}


def test_options_stay_with_the_solver_grid_and_guidance_they_were_made_for() -> None:
    assert chosen(OWN) == chosen(OWN, solver="ddim", grid="shifted", guidance="classifier_free") == OWN
    other = chosen(OWN, solver="euler_maruyama", grid="karras", guidance="adaptive_projected")
    assert (other.eta, other.shift, other.guidance_rescale, other.guidance_interval) == (-1.0, 1.0, 0.0, (0.0, 1.0))
    assert chosen(OWN, solver="euler_maruyama", eta="0.5").eta == 0.5
    assert chosen(OWN, steps="9", guidance_scale="3", eta="0").eta == 0


def test_guidance_moves_from_the_weaker_network_of_an_earlier_step_or_another_run(
    whole_run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    def drawn(*arguments: str) -> np.ndarray:
        common = ("--solver=euler", "--steps=4", "--labels=0,7", "--per_class=2")
        return inside.arrays(whole_run, tmp_path, *common, *arguments)[0]

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


def test_the_weaker_network_may_be_a_smaller_one(whole_run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    smaller = tmp_path / "smaller"
    saved.save(dit_rf.get_config(), smaller, {"model.hidden_size": 32, "model.depth": 1})
    common = ("--solver=euler", "--steps=4", "--labels=0,7", "--per_class=2")
    auto = ("--guidance=autoguidance", "--guidance_scale=2", f"--weak_workdir={smaller}")
    strong, guided = (inside.arrays(whole_run, tmp_path, *common, *more)[0] for more in (("--guidance_scale=1",), auto))
    assert np.max(np.abs(guided - strong)) > 5


def test_a_weaker_network_of_another_process_or_other_images_is_refused(
    whole_run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    auto = ("--guidance=autoguidance", f"--weak_workdir={tmp_path}")
    assert "--weak_workdir" in (said := complaint(whole_run, *auto)) and "holds no run" in said
    saved = json.loads((whole_run / "config.json").read_text())
    for group, field, value in (("data", "image_size", 16), ("process", "name", "edm")):
        other = {**saved, group: {**saved[group], field: value}}
        (tmp_path / "config.json").write_text(json.dumps(other))
        said = complaint(whole_run, *auto)
        assert f"config.{group}.{field} is {value!r} there and {saved[group][field]!r} here" in said
    (tmp_path / "config.json").write_text(json.dumps(saved))
    assert "--weak_workdir: no usable checkpoint" in complaint(whole_run, *auto)


def test_labels_are_lists_and_ranges() -> None:
    assert parse_labels("0-2,7", 10) == [0, 1, 2, 7]
    assert parse_labels("3", 10) == [3]
    assert parse_labels(None, 3) == [0, 1, 2] and len(parse_labels(None, 1000)) == 10


@pytest.mark.parametrize("text", ["0-10", "10", "a", "1,,2", "5-3", "", "-1", "1-2-3", "²", "0-99999999999"])
def test_wrong_labels_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="--labels"):
        parse_labels(text, 10)


BAD = {
    "label out of range": (["--labels=0-10"], ["label 10", "0-9"]),
    "unknown format": (["--out=x.jpg"], ["x.jpg", ".png"]),
    "unknown step": (["--step=7"], ["--step: ", "step 7", "60, 40, 20"]),
    "no steps": (["--steps=0"], ["--steps", "[1, 1000000]"]),
    "unknown solver": (["--solver=eular"], ["--solver: 'eular'", "did you mean 'euler'"]),
    "no number for guidance": (["--guidance_scale=nan"], ["--guidance_scale", "finite"]),
    "negative guidance": (["--guidance_scale=-1"], ["guidance_scale", "-1"]),
    "noise of a solver without": (["--solver=euler", "--eta=0.5"], ["--eta: euler", "ddim and euler_maruyama"]),
    "churn of another solver": (["--solver=heun", "--churn=3"], ["--churn: heun", "only edm"]),
    "too much noise": (["--solver=ddim", "--eta=1.5"], ["--eta: 1.5", "[0, 1]"]),
    "unknown grid": (["--grid=unifrom"], ["--grid: 'unifrom'", "did you mean 'uniform'", "karras"]),
    "a grid of ddpm's steps": (["--grid=trailing"], ["--grid: 'trailing'", "ddpm", "karras"]),
    "a respacing of no steps": (["--grid=250"], ["--grid: '250'", "ddpm", "karras"]),
    "shift of an even grid": (["--grid=uniform", "--shift=3"], ["--shift: 3", "'shifted'"]),
    "a grid that does not fit": (["--solver=edm", "--grid=uniform"], ["--solver: edm", "'karras'"]),
    "unknown guidance": (["--guidance=free"], ["--guidance: 'free'", "classifier_free, adaptive_projected"]),
    "unknown threshold": (["--threshold=foo"], ["--threshold: 'foo'", "none, static, dynamic"]),
    "an interval backwards": (["--guidance_interval=0.8,0.2"], ["--guidance_interval: 0.8,0.2", "first <= second"]),
    "no interval": (["--guidance_interval=abc"], ["--guidance_interval: 'abc'", "0.2,0.8"]),
    "half an interval": (["--guidance_interval=0.5"], ["--guidance_interval: '0.5'", "0.2,0.8"]),
    "rescaling of the other": (
        ["--guidance=adaptive_projected", "--guidance_rescale=0.5"],
        ["--guidance_rescale", "classifier_free and autoguidance"],
    ),
    "no weaker network": (["--guidance=autoguidance", "--guidance_scale=2"], ["--guidance", "--weak_workdir"]),
    "a weaker network for nothing": (["--weak_step=20"], ["--weak_step", "--guidance=autoguidance"]),
    "unknown weaker step": (["--guidance=autoguidance", "--weak_step=7"], ["--weak_step: ", "step 7", "60, 40, 20"]),
    "a stride of a still": (["--stride=2", "--out=x.png"], ["--stride", ".gif", "leave it out"]),
    "no stride": (["--stride=0", "--out=x.gif"], ["--stride"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_answered_with_one_line(case: str, whole_run: pathlib.Path) -> None:
    arguments, expected = BAD[case]
    message = complaint(whole_run, *arguments)
    assert all(word in message for word in expected), message


@pytest.mark.parametrize("case", ["no steps", "unknown step"])
def test_the_line_comes_with_exit_code_2(case: str, whole_run: pathlib.Path) -> None:
    arguments, expected = BAD[case]
    message = inside.refused_as_a_command(whole_run, *arguments)
    assert all(word in message for word in expected), message


def test_a_directory_without_a_run_or_without_a_checkpoint_is_refused(
    whole_run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    assert "holds no run" in complaint(tmp_path)
    shutil.copy(whole_run / "config.json", tmp_path)
    assert "--workdir: no usable checkpoint" in complaint(tmp_path)
