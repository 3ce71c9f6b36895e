"""Averages chosen after training: what the command writes of a run's snapshots, and that `sample` and
`evaluate` take it as a run.
"""

from __future__ import annotations

import json
import pathlib
import shlex
import shutil
import zlib
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archirf_jax.contracts import Network, TrainState
from archirf_jax.launch import run_directory
from archirf_jax.launch.runs import open_run
from archirf_jax.training import power_ema
from archirf_jax.training.checkpoints import Checkpoints
from archirf_jax.training.power_ema import Snapshot
from configs import adm_classifier, dit_edm, dit_rf
from tests import running
from tests.commands import drawing, saved

WIDTHS = (0.05, 0.1)
STEPS = (100, 200, 300)
TINY = saved.TINY_DIT | {"ema.sigma_rel": WIDTHS}
FEW = ("--labels=0,1", "--per_class=2", *drawing.PLAIN)
Leaves = dict[str, np.ndarray]


def tree_of(snapshot: Snapshot, shape: Any) -> Any:
    """What a snapshot of the tests holds: numbers of its own."""

    def numbers(path: Any, leaf: Any) -> np.ndarray:
        name = f"{jax.tree_util.keystr(path)} {snapshot.step} {snapshot.std}"
        values = np.random.default_rng(zlib.crc32(name.encode())).normal(size=leaf.shape)
        return (0.1 * values).astype(np.float32)

    return jax.tree_util.tree_map_with_path(numbers, shape)


def leaves(tree: Any) -> Leaves:
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def store(workdir: pathlib.Path, shape: Any, steps: Iterable[int] = STEPS) -> None:
    """Snapshots as a training leaves them."""
    checkpoints = Checkpoints(workdir / "snapshots", keep=0)
    for step in steps:
        averages = {power_ema.item(std): tree_of(Snapshot(step, std), shape) for std in WIDTHS}
        network = Network(params={}, averages=averages, opt=())
        checkpoints.save(TrainState(step=jnp.int32(step), networks={"model": network}), {})
    checkpoints.wait()
    checkpoints.close()


def expected(shape: Any, used: list[Snapshot], step: int, std: float) -> Leaves:
    weights = power_ema.coefficients(*zip(*used, strict=True), step, std)
    trees = [leaves(tree_of(each, shape)) for each in used]
    return {
        name: sum(w * tree[name].astype(float) for w, tree in zip(weights, trees, strict=True)) for name in trees[0]
    }


def written(path: pathlib.Path, shape: Any, step: int) -> Leaves:
    """The average of a run directory, whose only checkpoint is of `step`."""
    checkpoints = Checkpoints(path / "checkpoints")
    assert checkpoints.steps() == [step]
    return leaves(checkpoints.restore_average(shape)[1])


def close(ours: Leaves, theirs: Leaves) -> None:
    assert ours.keys() == theirs.keys() and len(ours) > 10
    for name, array in ours.items():
        assert array.dtype == np.float32
        np.testing.assert_allclose(array, theirs[name], rtol=1e-5, atol=1e-7, err_msg=name)


def average(workdir: pathlib.Path, *arguments: str) -> list[str]:
    """Run the command; what it says."""
    with running.messages() as said:
        running.call("posthoc_ema", f"--workdir={workdir}", *arguments)
    return said


def refused(workdir: pathlib.Path, *arguments: str) -> running.Refusal:
    return running.refused("posthoc_ema", f"--workdir={workdir}", *arguments)


def all_up_to(step: int) -> list[Snapshot]:
    return [Snapshot(at, std) for at in STEPS if at <= step for std in WIDTHS]


@pytest.fixture(scope="module")
def shape_and_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, pathlib.Path]:
    workdir = tmp_path_factory.mktemp("runs") / "x"
    ema = saved.save(dit_rf, workdir, TINY).params
    store(workdir, ema)
    return ema, workdir


@pytest.fixture
def shape(shape_and_run: tuple[Any, pathlib.Path]) -> Any:
    return shape_and_run[0]


@pytest.fixture
def run(shape_and_run: tuple[Any, pathlib.Path], tmp_path: pathlib.Path) -> pathlib.Path:
    """A run of a DiT with snapshots, for one test alone."""
    return shutil.copytree(shape_and_run[1], tmp_path / "run")


def test_every_width_becomes_a_run_whose_average_is_the_weighted_sum(shape: Any, run: pathlib.Path) -> None:
    lines = average(run, "--std=0.05,0.075,0.12")
    places = [run / "posthoc" / f"std_{std}_step_00000300" for std in ("0.050", "0.075", "0.120")]
    assert sorted((run / "posthoc").iterdir()) == places
    for std, path in zip((0.05, 0.075, 0.12), places, strict=True):
        close(written(path, shape, 300), expected(shape, all_up_to(300), 300, std))
    assert len(lines) == 4 and lines[-1] == f"next: python -m archirf_jax.sample --workdir={places[0]}"
    assert all(line.endswith(str(path)) for line, path in zip(lines, places, strict=False))
    assert lines[1].startswith("std 0.075 at step 300 from 6 averages, profile missed by 4.52%")


def test_the_next_command_can_be_pasted_whatever_the_path_is(run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    place = run.rename(tmp_path / "my run")
    assert f"--workdir={place / 'posthoc' / 'std_0.050_step_00000300'}" in shlex.split(average(place, "--std=0.05")[-1])


def test_a_stored_width_at_a_stored_step_is_that_snapshot(shape: Any, run: pathlib.Path) -> None:
    average(run, "--std=0.10", "--step=200")
    close(written(run / "posthoc" / "std_0.100_step_00000200", shape, 200), leaves(tree_of(Snapshot(200, 0.1), shape)))


def test_a_step_takes_the_snapshots_up_to_it_and_warns_when_they_are_far(shape: Any, run: pathlib.Path) -> None:
    lines = average(run, "--std=0.08", "--step=250")
    close(written(run / "posthoc" / "std_0.080_step_00000250", shape, 250), expected(shape, all_up_to(200), 250, 0.08))
    assert len(lines) == 3 and "from 4 averages" in lines[0]
    assert "std 0.08: its profile is missed by far, the last snapshot is of step 200" in lines[1]


def test_sample_takes_it_as_a_run_and_draws_what_the_average_draws(
    shape: Any, run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    average(run, "--std=0.05,0.15")
    near, far = (run / "posthoc" / f"std_{std}_step_00000300" for std in ("0.050", "0.150"))
    ours, labels = drawing.arrays(near, tmp_path, *FEW)
    assert ours.shape == (4, 8, 8, 1) and labels.tolist() == [0, 0, 1, 1] and ours.std() > 10
    assert np.any(drawing.arrays(far, tmp_path, *FEW)[0] != ours)
    direct = tmp_path / "direct"
    run_directory.write(direct, open_run(run).config.to_dict(), tree_of(Snapshot(300, 0.05), shape), 300)
    assert np.max(np.abs(drawing.arrays(direct, tmp_path, *FEW)[0] - ours)) <= 1


def test_evaluate_takes_it_as_a_run_and_measures_the_average(
    shape: Any, data_dir: pathlib.Path, run: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many figures as the run itself has, and those of a run that holds the same average."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    average(run, "--std=0.05,0.15")
    near, far = (run / "posthoc" / f"std_{std}_step_00000300" for std in ("0.050", "0.150"))
    direct = tmp_path / "direct"
    run_directory.write(direct, open_run(run).config.to_dict(), tree_of(Snapshot(300, 0.05), shape), 300)
    few = (f"--data_dir={data_dir}", "--images=16", "--batch_size=8", *drawing.PLAIN)
    for workdir in (near, direct, far):
        running.call("evaluate", f"--workdir={workdir}", *few)
    found = [json.loads((workdir / "evaluations.jsonl").read_text()) for workdir in (near, direct, far)]
    assert [row["step"] for row in found] == [300, 300, 300]
    ours, theirs, other = (row["figures"] for row in found)
    assert {"loss", "frechet", "precision"} <= set(ours)
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5) != other["loss"]
    assert ours["frechet"] == pytest.approx(theirs["frechet"], rel=0.01) != other["frechet"]


def test_the_configuration_is_the_runs_own_and_says_where_it_is_from(run: pathlib.Path) -> None:
    average(run, "--std=0.075")
    theirs = json.loads((run / "posthoc" / "std_0.075_step_00000300" / "config.json").read_text())
    assert theirs.pop("posthoc") == {"std": 0.075, "step": 300, "workdir": str(run)}
    assert theirs == json.loads((run / "config.json").read_text())


def test_constants_are_those_of_the_network(tmp_path: pathlib.Path) -> None:
    ema = saved.save(dit_edm, tmp_path, TINY | {"objective.name": "uncertainty", "objective.channels": 16}).params
    store(tmp_path, ema)
    average(tmp_path, "--std=0.02,0.2")
    last = leaves(tree_of(Snapshot(300, 0.1), ema))
    constants = [name for name in last if "frozen_" in name]
    assert len(constants) >= 2
    for std in ("0.020", "0.200"):
        ours = written(tmp_path / "posthoc" / f"std_{std}_step_00000300", ema, 300)
        assert all(ours[name].tobytes() == last[name].tobytes() for name in constants)
        kernel = next(name for name in last if "kernel" in name)
        assert np.any(ours[kernel] != last[kernel])


@pytest.mark.slow
def test_a_classifier_is_averaged_and_evaluated_as_well(tmp_path: pathlib.Path, data_dir: pathlib.Path) -> None:
    ema = saved.save(adm_classifier, tmp_path, saved.TINY_ADM | {"ema.sigma_rel": WIDTHS}).params
    store(tmp_path, ema, (100, 200))
    lines = average(tmp_path, "--std=0.07")
    path = tmp_path / "posthoc" / "std_0.070_step_00000200"
    close(written(path, ema, 200), expected(ema, all_up_to(200), 200, 0.07))
    assert lines[-1] == f"next: python -m archirf_jax.sample --workdir=RUN --classifier={path}"
    running.call("evaluate", f"--workdir={path}", f"--data_dir={data_dir}", "--images=8", "--batch_size=8")
    row = json.loads((path / "evaluations.jsonl").read_text())
    assert row["step"] == 200 and {"loss", "accuracy"} <= set(row["figures"])


def damage(run: pathlib.Path, snapshot: Snapshot) -> None:
    """Change a byte of the largest file."""
    files = (run / "snapshots" / str(snapshot.step) / f"model.averages.{power_ema.item(snapshot.std)}").rglob("*")
    path = max((file for file in files if file.is_file()), key=lambda file: file.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_damaged_snapshot_is_named_and_the_others_are_used(shape: Any, run: pathlib.Path) -> None:
    damage(run, Snapshot(200, 0.05))
    shutil.rmtree(run / "snapshots" / "300" / "model.averages.ema_0.100")
    lines = average(run, "--std=0.06")
    left = [each for each in all_up_to(300) if each not in (Snapshot(200, 0.05), Snapshot(300, 0.1))]
    close(written(run / "posthoc" / "std_0.060_step_00000300", shape, 300), expected(shape, left, 300, 0.06))
    for name, step in (("ema_0.050", 200), ("ema_0.100", 300)):
        assert any(name in line and f"step {step}" in line and "left out" in line for line in lines), lines


def test_nothing_is_written_where_every_snapshot_is_damaged(run: pathlib.Path) -> None:
    for snapshot in all_up_to(300):
        damage(run, snapshot)
    assert refused(run, "--std=0.06").flag == "--workdir"
    assert not (run / "posthoc").exists()


def test_what_is_there_is_not_overwritten(run: pathlib.Path) -> None:
    average(run, "--std=0.06")
    path = run / "posthoc" / "std_0.060_step_00000300"
    before = {file: file.stat().st_mtime_ns for file in path.rglob("*")}
    refusal = refused(run, "--std=0.2,0.06")
    assert refusal.flag == "--std" and str(path) in refusal.line
    assert {file: file.stat().st_mtime_ns for file in path.rglob("*")} == before
    assert [each.name for each in (run / "posthoc").iterdir()] == [path.name]


# Arguments -> the flag that the answer names.
BAD = {
    "--std=0.05,wide": "--std",
    "--std=": "--std",
    "--std=0.05,,0.1": "--std",
    "--std=0.05,0.3": "--std",
    "--std=0": "--std",
    "--std=nan": "--std",
    "--std=0.05,0.050": "--std",
    "--std=0.05 --step=99": "--step",
    "--std=0.05 --step=301": "--step",
    "--std=0.05 --step=last": "--step",
    "--std=0.05 --workdir=docs": "--workdir",
    "--step=200": "--std",
}


@pytest.mark.parametrize("arguments", BAD)
def test_what_cannot_be_made_is_refused_and_leaves_nothing(
    arguments: str, shape_and_run: tuple[Any, pathlib.Path]
) -> None:
    workdir = shape_and_run[1]
    refusal = refused(workdir, *arguments.split(" "))
    assert refusal.flag == BAD[arguments], refusal
    assert not (workdir / "posthoc").exists()


@pytest.mark.parametrize(("widths", "with_folder"), [((), False), ((), True), (WIDTHS, False), (WIDTHS, True)])
def test_a_run_without_snapshots_is_refused_with_what_makes_them(
    widths: tuple[float, ...], with_folder: bool, run: pathlib.Path
) -> None:
    saved.change(run, {"ema.sigma_rel": widths})
    shutil.rmtree(run / "snapshots")
    if with_folder:
        (run / "snapshots").mkdir()
    refusal = refused(run, "--std=0.05")
    assert refusal.flag == "--workdir" and "config.ema.sigma_rel" in refusal.line


def distance(ours: Leaves, theirs: Leaves) -> float:
    """Over all leaves, relative."""
    error = sum(np.sum(np.square(ours[name] - theirs[name])) for name in theirs)
    return float(np.sqrt(error / sum(np.sum(np.square(leaf)) for leaf in theirs.values())))


@pytest.mark.slow
def test_of_a_training_it_makes_the_average_that_the_training_kept(
    data_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """Three widths are kept, the third is also made of the snapshots of the other two."""
    workdir, step = tmp_path / "run", 200
    more = (f"--config.steps={step}", "--config.ema.sigma_rel=(0.05,0.1,0.15)", "--config.ema.snapshot_steps=10")
    rarely = [f"--config.{group}.every_steps={step}" for group in ("log", "checkpoint", "sample")]
    assert running.train(workdir, data_dir, *more, *rarely, "--config.steps_per_dispatch=10") == 0
    saved.change(workdir, {"ema.sigma_rel": WIDTHS})
    snapshots, like = Checkpoints(workdir / "snapshots"), open_run(workdir).shapes
    average(workdir, "--std=0.15")
    kept = leaves(snapshots.read("ema_0.150", like, step))
    near = leaves(snapshots.read("ema_0.100", like, step))
    made = written(workdir / "posthoc" / f"std_0.150_step_{step:08d}", like, step)
    assert distance(made, kept) < 1e-4 < 2e-3 < distance(near, kept)
