"""The training command as a person meets it: what it leaves, and what it refuses."""

from __future__ import annotations

import functools
import json
import pathlib
import re
import shlex
import shutil
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import pytest
from PIL import Image

from archirf_jax.launch.lock import lock
from archirf_jax.training import checksums
from archirf_jax.training.writers import MetricsFile
from tests import running
from tests.commands import drawing, saved

FEW = (*drawing.PLAIN, "--per_class=1")


def shortened(whole_run: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    """A copy of the run whose newest checkpoint is of step 40."""
    copy = shutil.copytree(whole_run, tmp_path / "copy")
    shutil.rmtree(copy / "checkpoints" / "60")
    return pathlib.Path(copy)


def test_a_run_leaves_metrics_images_and_its_configuration(whole_run: pathlib.Path) -> None:
    assert running.steps_logged(whole_run) == list(range(5, running.STEPS + 1, 5))
    last = running.rows(whole_run)[-1]
    assert {"loss", "learning_rate", "grad_norm", "update_norm", "images_per_second"} <= last.keys()
    assert running.steps_saved(whole_run) == [20, 40, 60]
    assert json.loads((whole_run / "config.json").read_text())["data"]["num_classes"] == 10
    assert [path.name for path in sorted((whole_run / "samples").iterdir())] == ["00000030.png", "00000060.png"]
    for name, frames in (("progress.gif", 2), ("denoising.gif", 3), ("loss.png", 1)):
        with Image.open(whole_run / name) as picture:
            assert getattr(picture, "n_frames", 1) == frames


def test_a_run_leaves_events_where_asked_to(
    whole_run: pathlib.Path, data_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    copy = shortened(whole_run, tmp_path)
    assert running.train(copy, data_dir, "--config.log.tensorboard=True") == 0
    assert list((copy / "tensorboard").glob("events.*")) and not (whole_run / "tensorboard").exists()


def test_a_run_reports_its_parameters_progress_images_and_the_next_command(whole_run: pathlib.Path) -> None:
    said = (whole_run / "messages.txt").read_text()
    assert "block_0/attention/project/qkv/kernel" in said and "Total:" in said
    assert f"step {running.STEPS}/{running.STEPS}  loss" in said and "images/s" in said
    assert "progress.gif" in said and "python -m archirf_jax.sample" in said


def test_a_finished_run_started_again_trains_no_further(
    whole_run: pathlib.Path, data_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    copy = shutil.copytree(whole_run, tmp_path / "copy")
    with running.messages() as said:
        assert running.train(copy, data_dir) == 0
    assert any("checkpoint of step 60" in line for line in said)
    running.assert_same_run(whole_run, copy)


def test_the_next_command_can_be_pasted_whatever_the_path_is(
    whole_run: pathlib.Path, data_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    copy = shutil.copytree(whole_run, tmp_path / "my 'first' run; $HOME")
    with running.messages() as said:
        assert running.train(copy, data_dir) == 0
    assert f"--workdir={copy}" in shlex.split(said[-1])


@pytest.mark.slow
def test_a_run_without_finite_losses_stops_and_keeps_the_last_good_checkpoint(
    data_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    workdir = tmp_path / "run"
    wild = (
        "--config.optimizer.learning_rate=1e18",
        "--config.optimizer.clip_norm=None",
        "--config.checkpoint.every_steps=1",
        "--config.guard.patience=3",
    )
    refusal = running.refused("main", *running.small(workdir, data_dir, *wild))
    stopped = re.search(r"not finite at step (\d+);", refusal.line)
    assert stopped and "--replay" in refusal.line
    kept = running.steps_saved(workdir)
    assert kept and all(saved < int(stopped[1]) for saved in kept)
    assert all(np.all(np.isfinite(array)) for array in running.final_arrays(workdir, max(kept)).values())
    with running.messages() as said:
        assert running.train(workdir, data_dir, *wild, "--replay") == 0
    assert "what went wrong is " in said[-1]


def overflow(workdir: pathlib.Path, layer: tuple[str, ...], value: float) -> None:
    """Make the weights of a layer so large, in the newest checkpoint, that its output is not finite."""
    folder = max((workdir / "checkpoints").glob("[0-9]*"), key=lambda path: int(path.name)) / "model.params"
    with ocp.StandardCheckpointer() as checkpointer:
        params = checkpointer.restore(folder)
        leaf = functools.reduce(lambda tree, name: tree[name], layer, params["model"])
        leaf["kernel"] = leaf["kernel"] * 0 + value
        checkpointer.save(folder, params, force=True)
    checksums.write(folder.parent)


@pytest.mark.slow
def test_updates_that_are_not_finite_are_skipped_counted_stopped_and_the_replay_names_the_layer(
    whole_run: pathlib.Path, data_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """Started again it stops at the same step."""
    layer = ("block_0", "mlp", "hidden")
    workdir = shortened(whole_run, tmp_path)
    overflow(workdir, layer, 3e38)
    often = ("--config.checkpoint.every_steps=2", "--config.checkpoint.keep=1")
    lines = {running.refused("main", *running.small(workdir, data_dir, *often)).line for _ in range(2)}
    assert len(lines) == 1 and "not finite at step 50" in lines.pop()
    assert running.steps_saved(workdir) == [20, 40]  # what was good is not given up for what is in doubt
    row = running.rows(workdir)[-1]
    assert row["step"] == 49 and row["skipped"] == 1 and "loss" not in row
    with running.messages() as said:
        assert running.train(workdir, data_dir, *often, "--replay") == 0
    assert "/".join(layer) in said[-1]
    assert json.loads((workdir / "stopped" / "replay.json").read_text())["step"] == 50


def test_a_directory_in_use_is_refused_with_its_holder(
    whole_run: pathlib.Path, data_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    with lock(copy := shortened(whole_run, tmp_path)):
        refusal = running.refused("main", *running.small(copy, data_dir))
    assert refusal.flag == "--workdir" and "process " in refusal.line
    assert running.steps_saved(copy) == [20, 40]


def test_a_directory_that_is_moved_away_gets_nothing_more(
    data_dir: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workdir, moved, write = tmp_path / "run", tmp_path / "moved", MetricsFile.write

    def replace(self: MetricsFile, step: int, row: Any) -> None:
        write(self, step, row)
        if step == 10:
            workdir.rename(moved)
            workdir.mkdir()

    monkeypatch.setattr(MetricsFile, "write", replace)
    refusal = running.refused("main", *running.small(workdir, data_dir))
    assert refusal.flag in ("", "--workdir") and str(workdir) in refusal.line
    assert running.steps_logged(moved) == [5, 10] and not list(workdir.rglob("*"))


def test_another_configuration_in_the_same_directory_is_refused_with_the_differences(
    whole_run: pathlib.Path, data_dir: pathlib.Path
) -> None:
    refusal = running.refused("main", *running.small(whole_run, data_dir, "--config.seed=1", "--config.model.depth=2"))
    assert refusal.flag == "--workdir"
    assert "seed: 0 there, 1 now" in refusal.line and "model.depth: 1 there, 2 now" in refusal.line


def test_a_run_goes_on_with_another_rate_where_asked_to_and_never_with_another_network(
    whole_run: pathlib.Path, data_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    copy = shortened(whole_run, tmp_path)
    before = (copy / "config.json").read_text()
    deeper = running.small(copy, data_dir, "--change_config", "--config.model.depth=2")
    assert "block_1" in running.refused("main", *deeper).line
    assert (copy / "config.json").read_text() == before
    with running.messages() as said:
        assert running.train(copy, data_dir, "--change_config", "--config.optimizer.learning_rate=1e-5") == 0
    assert any("optimizer.learning_rate: 0.002 there, 1e-05 now" in line for line in said)
    ours, theirs = (np.asarray([row["learning_rate"] for row in running.rows(run)]) for run in (copy, whole_run))
    np.testing.assert_allclose(ours / theirs, [1] * 8 + [1e-5 / 2e-3] * 4, rtol=1e-5)


def test_checkpoints_that_are_gone_are_not_taken_for_a_first_start(
    whole_run: pathlib.Path, data_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    copy = shortened(whole_run, tmp_path)
    shutil.rmtree(copy / "checkpoints")
    (copy / "checkpoints").mkdir()
    before = [(copy / name).read_bytes() for name in ("metrics.jsonl", "config.json")]
    for more in ((), ("--config.seed=5",), ("--config.seed=5", "--change_config")):
        refusal = running.refused("main", *running.small(copy, data_dir, *more))
        assert refusal.flag in ("", "--workdir") and str(copy) in refusal.line
        assert [(copy / name).read_bytes() for name in ("metrics.jsonl", "config.json")] == before


@pytest.mark.parametrize("name", ["lr[1e-4]", "a*/run", "what?"])
def test_a_path_in_which_checkpoints_cannot_be_read_is_refused_before_anything_is_made(
    name: str, data_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    assert running.refused("main", *running.small(tmp_path / name, data_dir)).flag == "--workdir"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "flag"),
    [("model.mlp_ratio=1000000", "config.model"), ("sample.per_class=10000", "config.sample.per_class")],
)
def test_what_no_machine_holds_is_refused_before_anything_is_made(
    change: str, flag: str, data_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    assert running.refused("main", *running.small(tmp_path / "x", data_dir), f"--config.{change}").flag == flag
    assert not list(tmp_path.iterdir())


def test_a_run_on_other_images_or_classes_is_refused_with_both_sides(
    whole_run: pathlib.Path, data_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    identity = json.loads((whole_run / "config.json").read_text())["identity"]
    assert identity["class_names"] == [str(label) for label in range(10)] and identity["images"] == 1797
    run = shortened(whole_run, tmp_path)
    saved.change(run, {"identity.class_names": ["ant", "bee", *identity["class_names"][2:]], "identity.images": 24})
    refusal = running.refused("main", *running.small(run, data_dir))
    assert (
        refusal.flag == "--workdir" and "'ant' there, '0' now" in refusal.line and "24 there, 1797 now" in refusal.line
    )
    assert running.steps_saved(run) == [20, 40]
    # Labels by name are the run's own names.
    by_name, by_number = (drawing.arrays(run, tmp_path, *FEW, f"--labels={labels}") for labels in ("bee,ant", "1,0"))
    assert all(map(np.array_equal, by_name, by_number))


# Arguments -> the flag or field that the answer names.
BAD = {
    "--config.data.name=cifr10": "config.data.name",
    "--config.data.name=mnist": "config.data.name",
    "--config.data.name=folder:/none": "config.data.name",
    "--config.data.num_classes=3": "config.data.num_classes",
    "--config.batch_size=1798": "config.batch_size",
    "--config.accumulation=5": "config.batch_size",
    "--config.mesh.data=1000": "config.mesh.data",
    "--config.model.name=dti": "config.model.name",
    "--config.model.dept=3": "config.model.dept",
    "--config.model.patch_size=3": "config.model.patch_size",
    "--config.model.num_heads=5": "config.model.num_heads",
    "--config.model.dtype=float8": "config.model.dtype",
    "--config.model.depth=1.5": "config.model.depth",
    "--config.model.low_res=True": "config.condition",
    "--config.model.learn_sigma=True": "config.model",
    "--config.model.conditioning=cross_attention --config.model.context_width=7": "config.condition",
    "--config.process.time_scale=1e12": "config.process.time_scale",
    "--config.optimizer.b1=1": "config.optimizer.b1",
    "--config.checkpoint.keep_best=1 --config.checkpoint.best_metric=los": "config.checkpoint.best_metric",
    "--config.process.name=rectified": "config.process.name",
    "--config.objective.time_distribution=normal": "config.objective.time_distribution",
    "--config.objective.logit_mean=nan": "config.objective.logit_mean",
    "--config.sample.solver.name=eular": "config.sample.solver.name",
    "--config.sample.solver.churn=3": "config.sample.solver.churn",
    "--config.optimizer.name=adamv": "config.optimizer.name",
    "--config.schedule.name=cosin": "config.schedule.name",
    "--config.ema.sigma_rel=(0.5,)": "config.ema.sigma_rel",
    "--config.networks.modle.ema.decay=0.5": "config.networks.modle",
    "--config.frozen.teacher=docs": "config.frozen.teacher",
    "--config.conditioners.label.name=lable": "config.conditioners.label.name",
    "--config.first_stage.name=imag": "config.first_stage.name",
    "--config.task=difusion": "config.task",
    "--profile=7": "--profile",
    "--replay": "--workdir",
    "--coordinator=localhost:1": "--coordinator",
    "--coordinator=localhost:1 --processes=2 --process=2": "--process",
    "--coordinator=localhost --processes=2 --process=0": "--coordinator",
    "--workdir=README.md/run": "--workdir",
}


@pytest.mark.parametrize("argument", BAD)
def test_bad_input_is_answered_with_its_flag_or_field_and_begins_no_run(
    argument: str, data_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    workdir = tmp_path / "run"
    refusal = running.refused("main", *running.small(workdir, data_dir, *argument.split(" ")))
    assert refusal.flag == BAD[argument], refusal
    assert not workdir.exists()


def test_an_error_is_one_line_with_exit_code_2_and_no_run(data_dir: pathlib.Path, tmp_path: pathlib.Path) -> None:
    done = running.run("main", *running.small(tmp_path / "run", data_dir, "--config.model.num_heads=5"))
    assert done.returncode == 2 and done.stdout == "", done.stderr
    progress = ("read ", "reading ")  # of the images, which is said where it takes long
    said = [line for line in done.stderr.splitlines() if not line.startswith(progress)]
    assert len(said) == 1 and said[0].startswith("error: config.model.num_heads: 5 "), done.stderr
    assert not (tmp_path / "run").exists()
