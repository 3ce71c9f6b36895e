"""The training command as a person meets it: what it leaves, what it says, and what survives."""

from __future__ import annotations

import functools
import json
import os
import pathlib
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import pytest
from PIL import Image

from archirf_jax.training import checksums
from archirf_jax.training.writers import told
from benchmarks import crash
from tests import running
from tests.commands.alone import Command

MAIN = Command("archirf_jax.main")
RESUME = 75  # exit code of a run that was asked to stop


def slow(value: Any) -> Any:
    """Of a test whose other values prove the law."""
    return pytest.param(value, marks=pytest.mark.slow)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.001)


def freeze(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Stop the process while the condition holds."""
    while True:
        wait_for(condition, process)
        process.send_signal(signal.SIGSTOP)
        if condition():
            return
        process.send_signal(signal.SIGCONT)


def start(workdir: pathlib.Path, data_dir: pathlib.Path, *extra: str) -> subprocess.Popen[str]:
    command = running.arguments(workdir, data_dir, extra)
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=running.REPOSITORY, env=running.environment(), **pipes)


def logged_steps(workdir: pathlib.Path) -> list[int]:
    path = workdir / "metrics.jsonl"
    return [json.loads(line)["step"] for line in path.read_text().splitlines()] if path.exists() else []


def test_a_run_leaves_metrics_events_pictures_and_its_configuration(whole_run: pathlib.Path) -> None:
    assert logged_steps(whole_run) == list(range(5, running.STEPS + 1, 5))
    last = json.loads((whole_run / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"loss", "learning_rate", "grad_norm", "update_norm", "images_per_second"} <= last.keys()
    assert list((whole_run / "tensorboard").glob("events.*"))
    assert json.loads((whole_run / "config.json").read_text())["data"]["num_classes"] == 10
    assert [path.name for path in sorted((whole_run / "samples").iterdir())] == ["00000030.png", "00000060.png"]
    for name, frames in (("progress.gif", 2), ("denoising.gif", 5), ("loss.png", 1)):
        with Image.open(whole_run / name) as picture:
            assert getattr(picture, "n_frames", 1) == frames


def test_a_run_tells_its_parameters_progress_pictures_and_the_next_command(whole_run: pathlib.Path) -> None:
    said = (whole_run / "stderr.txt").read_text()
    assert "block_0/attention/project/qkv/kernel" in said and "Total:" in said
    assert f"step {running.STEPS}/{running.STEPS}  loss" in said and "images/s" in said
    assert "progress.gif" in said and "python -m archirf_jax.sample" in said


def test_a_finished_run_started_again_trains_no_further(
    whole_run: pathlib.Path, data_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    copy = shutil.copytree(whole_run, tmp_path / "copy")
    done = running.main(copy, data_dir)
    assert done.returncode == 0 and "going on from the checkpoint of step 60" in done.stderr
    running.assert_same_run(whole_run, copy)


@pytest.mark.parametrize("sig", [signal.SIGTERM, slow(signal.SIGINT), slow(signal.SIGUSR1)])
def test_a_stop_signal_saves_says_how_to_go_on_and_changes_nothing(
    sig: signal.Signals, whole_run: pathlib.Path, data_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    workdir = tmp_path / "run"
    process = start(workdir, data_dir)
    wait_for(lambda: len(logged_steps(workdir)) >= 5, process)
    process.send_signal(sig)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == RESUME, said
    assert f"{sig.name}: saved step" in said and "python -m archirf_jax.main --config=configs/dit_rf.py" in said
    assert "Traceback" not in said and not (workdir / "denoising.gif").exists()
    stopped = re.search(r"saved step (\d+) of", said)
    assert stopped and (workdir / "checkpoints" / stopped[1] / "ema").is_dir()
    assert running.main(workdir, data_dir).returncode == 0
    running.assert_same_run(whole_run, workdir)
    assert logged_steps(workdir) == logged_steps(whole_run)


def test_kills_at_any_moment_lose_nothing(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XLA_FLAGS")
    told = crash.run(kills=3, steps=100, seed=1, folder=tmp_path)
    assert told["kills"] == {"start": 1, "training": 1, "save": 1}
    assert told["differing"] == [] and told["arrays"] > 100
    assert not any((tmp_path / "killed" / "checkpoints").glob("*tmp*"))


@pytest.mark.parametrize("damage", ["truncate", slow("overwrite"), slow("remove")])
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(
    damage: str, whole_run: pathlib.Path, data_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    copy = shutil.copytree(whole_run, tmp_path / "copy")
    largest = max((copy / "checkpoints" / "60" / "ema").rglob("*"), key=lambda path: path.stat().st_size)
    if damage == "truncate":
        largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    elif damage == "overwrite":
        largest.write_bytes(np.random.default_rng(0).bytes(largest.stat().st_size))
    else:
        largest.unlink()
    drawn = running.sample(copy, f"--out={tmp_path / 'x.png'}", "--per_class=1")
    assert drawn.returncode == 0 and "step 60 is damaged" in drawn.stderr and "images of step 40" in drawn.stderr
    again = running.main(copy, data_dir)
    assert again.returncode == 0
    assert "step 60 is damaged" in again.stderr and "going on from the checkpoint of step 40" in again.stderr
    running.assert_same_run(whole_run, copy)


def test_a_full_disk_during_a_save_keeps_the_older_checkpoint(
    whole_run: pathlib.Path, data_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    workdir = tmp_path / "run"
    process = start(workdir, data_dir)
    freeze(lambda: (workdir / "checkpoints" / "20").exists(), process)
    # Writes past this size fail, as they do on a full disk; checkpoints are larger, logs are not.
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (20_000, 20_000))
    process.send_signal(signal.SIGCONT)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 2 and "Traceback" not in said
    message = said.splitlines()[-1]
    assert message.startswith("error: a checkpoint could not be written") and "File too large" in message
    assert re.search(r"whole checkpoints: (\d+, )?20$", message)
    assert running.main(workdir, data_dir).returncode == 0
    running.assert_same_run(whole_run, workdir)


def test_training_goes_on_without_a_checkpoint_if_told_to(data_dir: pathlib.Path, tmp_path: pathlib.Path) -> None:
    workdir = tmp_path / "run"
    process = start(workdir, data_dir, "--config.checkpoint.required=False", "--config.steps=400")
    freeze(lambda: (workdir / "checkpoints").exists(), process)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    process.send_signal(signal.SIGCONT)
    freeze(lambda: logged_steps(workdir)[-1:] >= [45], process)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    process.send_signal(signal.SIGCONT)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 0 and "Traceback" not in said, said
    assert "a checkpoint could not be written" in said and "File too large" in said and "training goes on" in said
    assert steps_saved(workdir)[-1] == 400 and logged_steps(workdir)[-1] == 400


def steps_saved(workdir: pathlib.Path) -> list[int]:
    return sorted(int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdecimal())


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["start", "compile", "step", "save", "sampling"])
def test_a_signal_at_any_moment_leaves_a_run_that_goes_on(
    moment: str, whole_run: pathlib.Path, data_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    workdir = tmp_path / "run"
    picture = workdir / "samples" / f"{30:08}.png"
    process = start(workdir, data_dir)
    if moment == "start":
        time.sleep(1.5)
    elif moment == "compile":
        # Nothing of the run is to be seen between its metrics file and the first row.
        wait_for(lambda: (workdir / "metrics.jsonl").exists(), process)
    elif moment == "step":
        wait_for(lambda: logged_steps(workdir)[-1:] >= [10], process)
    elif moment == "save":
        freeze(lambda: any((workdir / "checkpoints").glob("[46]0.*tmp*")), process)
    else:
        freeze(lambda: logged_steps(workdir)[-1:] == [30] and not picture.exists(), process)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGCONT)
    said = process.communicate(timeout=120)[1]
    if moment == "start":
        assert process.returncode in (RESUME, -signal.SIGTERM), said
    else:
        assert process.returncode == RESUME and "Traceback" not in said, said
        assert steps_saved(workdir)[-1] < running.STEPS
    assert moment != "sampling" or picture.exists()
    assert running.main(workdir, data_dir).returncode == 0
    running.assert_same_run(whole_run, workdir)
    assert logged_steps(workdir) == logged_steps(whole_run)


@pytest.mark.slow
def test_a_run_without_finite_losses_stops_and_keeps_the_last_good_checkpoint(
    data_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    workdir = tmp_path / "run"
    wild = (
        "--config.optimizer.learning_rate=1e30",
        "--config.optimizer.clip_norm=0",
        "--config.checkpoint.every_steps=1",
        "--config.guard.patience=3",
    )
    done = running.main(workdir, data_dir, *wild)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    message = done.stderr.splitlines()[-1]
    stopped = re.search(
        r"loss or gradient were not finite at step (\d+); its parameters, batch and key are in", message
    )
    assert stopped and "--replay" in message
    kept = [int(path.name) for path in (workdir / "checkpoints").iterdir()]
    assert kept and all(saved < int(stopped[1]) for saved in kept)
    assert all(np.all(np.isfinite(array)) for array in running.final_arrays(workdir, max(kept)).values())
    looked = running.main(workdir, data_dir, *wild, "--replay")
    assert looked.returncode == 0 and "what went wrong is the loss" in looked.stderr
    assert "largest outputs: DiT " in looked.stderr or "largest outputs: final_layer" in looked.stderr


def overflow(workdir: pathlib.Path, layer: tuple[str, ...], value: float) -> None:
    """Make the weights of a layer so large, in the newest checkpoint, that its output is no number."""
    folder = max((workdir / "checkpoints").glob("[0-9]*"), key=lambda path: int(path.name)) / "params"
    with ocp.StandardCheckpointer() as checkpointer:
        params = checkpointer.restore(folder)
        leaf = functools.reduce(lambda tree, name: tree[name], layer, params)
        leaf["kernel"] = leaf["kernel"] * 0 + value
        checkpointer.save(folder, params, force=True)
    (folder.parent / checksums.FILE).unlink()


@pytest.mark.parametrize("layer", [("block_1", "mlp", "hidden"), slow(("final_layer", "linear"))])
def test_updates_that_are_not_finite_are_skipped_counted_stopped_and_the_replay_names_the_layer(
    layer: tuple[str, ...], whole_run: pathlib.Path, data_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    workdir = shutil.copytree(whole_run, tmp_path / "run")
    shutil.rmtree(workdir / "checkpoints" / "60")
    overflow(workdir, layer, 3e38)
    often = ("--config.guard.patience=7", "--config.checkpoint.every_steps=2", "--config.checkpoint.keep=1")
    done = running.main(workdir, data_dir, *often)
    assert done.returncode == 2 and "not finite at step 47" in done.stderr
    assert steps_saved(workdir) == [20, 40]  # what was good is not given up for what is in doubt
    row = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
    assert row["step"] == 46 and row["skipped"] == 1 and "loss" not in row
    looked = running.main(workdir, data_dir, *often, "--replay")
    assert looked.returncode == 0, looked.stderr
    assert f"the first layer that went wrong is {'/'.join(layer)}: its output is not finite" in looked.stderr
    assert json.loads((workdir / "stopped" / "replay.json").read_text())["step"] == 47


@pytest.mark.slow
def test_a_stopped_run_started_again_stops_at_the_same_step_with_the_same_words(
    whole_run: pathlib.Path, data_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    workdir = shutil.copytree(whole_run, tmp_path / "run")
    shutil.rmtree(workdir / "checkpoints" / "60")
    overflow(workdir, ("block_0", "mlp", "out"), 3e38)
    said = [running.main(workdir, data_dir, "--config.guard.patience=3").stderr.splitlines()[-1] for _ in range(2)]
    assert said[0] == said[1] and "not finite at step 43" in said[0]
    looked = running.main(workdir, data_dir, "--config.guard.patience=3", "--replay")
    assert "the first layer that went wrong is block_0/mlp/out" in looked.stderr


def test_a_signal_before_there_is_anything_to_save_says_resume_me(
    data_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    fifo = tmp_path / "photos" / "a" / "x.png"
    fifo.parent.mkdir(parents=True)
    os.mkfifo(fifo)  # a picture that does not come: the command waits for its data
    process = start(tmp_path / "run", data_dir, f"--config.data.name=folder:{tmp_path / 'photos'}")
    writer = os.open(fifo, os.O_WRONLY)  # opens when the command does
    process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    os.close(writer)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == RESUME and said == "SIGTERM: start the same command again\n"
    assert not (tmp_path / "run").exists()


def test_a_second_run_in_the_same_directory_is_refused_while_the_first_lives(
    data_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    workdir = tmp_path / "run"
    first = start(workdir, data_dir, "--config.steps=100000", "--config.schedule.name=constant")
    wait_for(lambda: len(logged_steps(workdir)) >= 1, first)
    second = running.main(workdir, data_dir, "--config.steps=100000", "--config.schedule.name=constant")
    assert second.returncode == 2 and f"in use by process {first.pid} on" in second.stderr
    assert len(second.stderr.strip().splitlines()) == 1
    first.kill()
    first.communicate()


def test_another_configuration_in_the_same_directory_is_refused_with_the_differences(
    whole_run: pathlib.Path, data_dir: pathlib.Path
) -> None:
    done = running.main(whole_run, data_dir, "--config.seed=1", "--config.model.depth=3")
    assert done.returncode == 2
    assert "seed: 0 there, 1 now" in done.stderr and "model.depth: 2 there, 3 now" in done.stderr


def test_a_run_goes_on_with_another_rate_if_told_to_and_never_with_another_network(
    whole_run: pathlib.Path, data_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    copy = shutil.copytree(whole_run, tmp_path / "copy")
    shutil.rmtree(copy / "checkpoints" / "60")
    before = (copy / "config.json").read_text()
    deeper = running.main(copy, data_dir, "--change_config", "--config.model.depth=3")
    assert deeper.returncode == 2 and "of another network than this one: params has no block_2" in deeper.stderr
    assert (copy / "config.json").read_text() == before
    done = running.main(copy, data_dir, "--change_config", "--config.optimizer.learning_rate=1e-5")
    assert done.returncode == 0, done.stderr
    assert "optimizer.learning_rate: 0.002 there, 1e-05 now" in done.stderr and "checkpoint of step 40" in done.stderr
    ours, theirs = (np.asarray([row["learning_rate"] for row in told(run)]) for run in (copy, whole_run))
    np.testing.assert_allclose(ours / theirs, [1] * 8 + [1e-5 / 2e-3] * 4, rtol=1e-5)


BAD = {
    "unknown key": (["--config.stepz=3"], ["stepz", "did you mean 'steps'"]),
    "unknown nested key": (["--config.model.dept=3"], ["config.model.dept", "model.depth"]),
    "wrong type": (["--config.steps=many"], ["config.steps", "'many'", "integer"]),
    "wrong number": (["--config.optimizer.learning_rate=fast"], ["config.optimizer.learning_rate", "'fast'"]),
    "wrong truth value": (["--config.data.flip=perhaps"], ["config.data.flip", "true or false"]),
    "value out of range": (["--config.ema.decay=1.5"], ["config.ema.decay", "1.5", "[0, 1)"]),
    "unknown variant": (["--config=configs/dit_rf.py:cifr"], ["cifr", "cifar10"]),
    "missing config file": (["--config=configs/none.py"], ["configs/none.py"]),
    "unknown data set": (["--config.data.name=cifr10"], ["cifr10", "did you mean 'cifar10'"]),
    "unprepared data set": (["--config.data.name=mnist"], ["python -m archirf_jax.prepare_data --name=mnist"]),
    "missing folder": (["--config.data.name=folder:/none"], ["/none"]),
    "batch larger than the set": (["--config.batch_size=1798"], ["1798", "1797"]),
    "indivisible image": (["--config.model.patch_size=3"], ["patch_size", "8x8"]),
    "indivisible heads": (["--config.model.num_heads=5"], ["num_heads: 5"]),
    "unknown model": (["--config.model.name=dti"], ["dti", "did you mean 'dit'"]),
    "unknown process": (["--config.process.name=rectified"], ["rectified_flow"]),
    "unknown times": (["--config.process.time_distribution=normal"], ["logit_normal"]),
    "unknown solver": (["--config.sample.solver=eular"], ["eular", "did you mean 'euler'"]),
    "unknown optimizer": (["--config.optimizer.name=adamv"], ["adamv", "adamw"]),
    "unknown schedule": (["--config.schedule.name=cosin"], ["cosin", "cosine"]),
    "unknown dtype": (["--config.model.dtype=float8"], ["float8", "bfloat16"]),
    "no finite number": (["--config.process.logit_mean=nan"], ["config.process.logit_mean", "finite"]),
    "seed too large": (["--config.seed=99999999999999999999"], ["config.seed", "2**31"]),
    "too few classes": (["--config.data.num_classes=3"], ["config.data.num_classes", "10"]),
    "bad mesh": (["--config.mesh.fsdp=3"], ["config.mesh.fsdp", "does not divide"]),
    "bad parts": (["--config.accumulation=5"], ["config.batch_size: 32", "devices x accumulation", "take"]),
    "bad width of an average": (["--config.ema.stds=(0.5,)"], ["config.ema.stds", "0.5"]),
    "bad profile": (["--profile=7"], ["--profile", "100..110"]),
    "no configuration": (["--config=README.md"], ["README.md", "SyntaxError"]),
    "unknown flag": (["--wurkdir=x"], ["wurkdir", "workdir"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_answered_in_one_line_and_begins_no_run(
    case: str, data_dir: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides, expected = BAD[case]
    workdir = tmp_path / "run"
    monkeypatch.chdir(running.REPOSITORY)
    said = MAIN.answer(*running.arguments(workdir, data_dir, overrides)[3:])
    assert all(word in said for word in expected), said
    assert not workdir.exists()


@pytest.mark.parametrize("case", ["unknown nested key", "unprepared data set", "no configuration"])
def test_the_line_comes_with_exit_code_2_and_no_run(case: str, data_dir: pathlib.Path, tmp_path: pathlib.Path) -> None:
    overrides, expected = BAD[case]
    workdir = tmp_path / "run"
    done = running.main(workdir, data_dir, *overrides)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and done.stderr.startswith("error: ")
    assert all(word in done.stderr for word in expected), done.stderr
    assert not workdir.exists()


def test_fields_before_the_configuration_are_told_where_they_belong(tmp_path: pathlib.Path) -> None:
    start = [sys.executable, "-m", "archirf_jax.main", f"--workdir={tmp_path / 'run'}"]
    done = running.run([*start, "--config.steps=3", "--config=configs/dit_rf.py"])
    assert done.returncode == 2 and not (tmp_path / "run").exists()
    assert done.stderr == "error: --config: must come before its fields; move it before --config.steps=3\n"
