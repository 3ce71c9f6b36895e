"""Trainings that are interrupted, by signals, kills, damage and full disks: what survives goes on as it would have."""

from __future__ import annotations

import pathlib
import re
import resource
import shutil
import signal

import numpy as np
import pytest

from benchmarks import crash
from tests import running

RESUME = 75  # exit code of a run that was asked to stop


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "sig"),
    [("compile", signal.SIGTERM), ("sampling", signal.SIGTERM), ("save", signal.SIGINT)],
)
def test_a_signal_at_any_moment_saves_says_how_to_go_on_and_changes_nothing(
    moment: str, sig: signal.Signals, whole_run: pathlib.Path, data_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    workdir = tmp_path / "run"
    picture = workdir / "samples" / f"{30:08}.png"
    process = running.start(workdir, data_dir)
    if moment == "compile":
        # Nothing of the run is to be seen between its metrics file and the first row.
        running.wait_for(lambda: (workdir / "metrics.jsonl").exists(), process)
    elif moment == "save":
        running.freeze(lambda: any((workdir / "checkpoints").glob("[46]0.*tmp*")), process)
    else:
        running.freeze(lambda: running.steps_logged(workdir)[-1:] == [30] and not picture.exists(), process)
    process.send_signal(sig)
    process.send_signal(signal.SIGCONT)
    said = process.communicate(timeout=240)[1]
    assert process.returncode == RESUME and "Traceback" not in said, said
    stopped = re.search(rf"{sig.name}: saved step (\d+) of .*python -m archirf_jax.main --config=", said)
    assert stopped and int(stopped[1]) == running.steps_saved(workdir)[-1] < running.STEPS
    assert not (workdir / "denoising.gif").exists()
    assert moment != "sampling" or picture.exists()
    assert running.train(workdir, data_dir) == 0
    running.assert_same_run(whole_run, workdir)


@pytest.mark.slow
def test_kills_at_any_moment_lose_nothing(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XLA_FLAGS")
    told = crash.run(kills=3, steps=40, seed=1, folder=tmp_path)
    assert told["kills"] == {"start": 1, "training": 1, "save": 1}
    assert told["differing"] == [] and told["arrays"] > 100
    assert not any((tmp_path / "killed" / "checkpoints").glob("*tmp*"))


@pytest.mark.parametrize("damage", ["truncate", pytest.param("overwrite", marks=pytest.mark.slow)])
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(
    damage: str, whole_run: pathlib.Path, data_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    copy = shutil.copytree(whole_run, tmp_path / "copy")
    average = copy / "checkpoints" / "60" / "model.averages.ema"
    largest = max(average.rglob("*"), key=lambda path: path.stat().st_size)
    if damage == "truncate":
        largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    else:
        largest.write_bytes(np.random.default_rng(0).bytes(largest.stat().st_size))
    with running.messages() as said:
        running.call("sample", f"--workdir={copy}", f"--out={tmp_path / 'x.png'}", "--per_class=1")
        assert running.train(copy, data_dir) == 0
    assert sum("step 60 is damaged" in line for line in said) == 2
    assert any("images of step 40" in line for line in said) and any("of step 40" in line for line in said[2:])
    assert running.steps_saved(copy) == [20, 40, 60] and (copy / "damaged" / "60").is_dir()
    running.assert_same_run(whole_run, copy)


@pytest.mark.slow
def test_a_full_disk_during_a_save_keeps_the_older_checkpoint(
    whole_run: pathlib.Path, data_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    workdir = tmp_path / "run"
    process = running.start(workdir, data_dir)
    running.freeze(lambda: (workdir / "checkpoints" / "20").exists(), process)
    # Writes past this size fail, as they do on a full disk; checkpoints are larger, logs are not.
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (20_000, 20_000))
    process.send_signal(signal.SIGCONT)
    said = process.communicate(timeout=240)[1]
    assert process.returncode == 2 and "Traceback" not in said, said
    message = said.splitlines()[-1]
    assert message.startswith("error: ") and "File too large" in message
    assert re.search(r"whole checkpoints: (\d+, )?20$", message)
    assert running.train(workdir, data_dir) == 0
    running.assert_same_run(whole_run, workdir)


@pytest.mark.slow
def test_training_goes_on_without_a_checkpoint_where_none_is_required(
    data_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    workdir = tmp_path / "run"
    process = running.start(workdir, data_dir, "--config.checkpoint.required=False")
    running.freeze(lambda: (workdir / "checkpoints").exists(), process)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    process.send_signal(signal.SIGCONT)
    running.freeze(lambda: running.steps_logged(workdir)[-1:] >= [45], process)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    process.send_signal(signal.SIGCONT)
    said = process.communicate(timeout=240)[1]
    assert process.returncode == 0 and "Traceback" not in said, said
    assert "File too large" in said and "training goes on" in said
    assert running.steps_saved(workdir) == [running.STEPS] and running.steps_logged(workdir)[-1] == running.STEPS
