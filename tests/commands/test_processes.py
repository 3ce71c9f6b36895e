"""Two processes on this machine are one run: the same losses as one, one stop for both, and no hanging."""

from __future__ import annotations

import pathlib
import signal
import socket
import subprocess

import jax
import numpy as np
import pytest

from archirf_jax.launch.runs import open_run
from tests import running

pytestmark = pytest.mark.slow
Pair = list[subprocess.Popen[str]]
# Until it is stopped, without pictures.
CONSTANT = ("--config.schedule.name=constant", "--config.sample.every_steps=1000")
ENDLESS = ("--config.steps=100000", *CONSTANT)


def start(workdir: pathlib.Path, data_dir: pathlib.Path, *extra: str) -> Pair:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        together = (f"--coordinator=127.0.0.1:{free.getsockname()[1]}", "--processes=2")
    # One device each, which `mesh.data` then counts together.
    mesh = ("--config.mesh.data=None", *extra, *together)
    return [running.start(workdir, data_dir, *mesh, f"--process={i}", XLA_FLAGS=running.ONE_DEVICE) for i in range(2)]


def ended(pair: Pair) -> list[str]:
    """What each said, when both have ended."""
    return [process.communicate(timeout=240)[1] for process in pair]


def losses(workdir: pathlib.Path) -> list[float]:
    return [row["loss"] for row in running.rows(workdir)]


def test_two_processes_that_share_the_parameters_and_read_a_streamed_set_in_shares_train_as_one(
    whole_run: pathlib.Path, data_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    pair = start(tmp_path / "run", data_dir, "--config.mesh.fsdp=2", "--config.data.device_cache_mib=0")
    said = ended(pair)
    assert [process.returncode for process in pair] == [0, 0], said
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(whole_run), rtol=1e-5)
    ours, theirs = (open_run(run).params for run in (tmp_path / "run", whole_run))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), ours, theirs)
    assert "step 60/60" in said[0] and "step 60/60" not in said[1]
    assert (tmp_path / "run" / "denoising.gif").exists()


def test_when_one_is_killed_the_other_says_so_and_the_run_goes_on_when_started_again(
    data_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    workdir = tmp_path / "run"
    pair = start(workdir, data_dir, *ENDLESS)
    running.wait_for(lambda: (workdir / "checkpoints" / "20").exists() and len(losses(workdir)) > 4, *pair)
    pair[1].kill()
    said = ended(pair)[0]
    assert pair[0].returncode == 2 and "error: another process of this run does not answer" in said, said
    assert "Traceback" not in said and "Fatal Python error" not in said
    for run in (workdir, tmp_path / "alone"):
        assert running.train(run, data_dir, *CONSTANT, "--config.steps=40") == 0
    assert len(losses(workdir)) == 8
    np.testing.assert_allclose(losses(workdir), losses(tmp_path / "alone"), rtol=1e-5)


def test_a_signal_to_one_stops_both_at_one_step(data_dir: pathlib.Path, tmp_path: pathlib.Path) -> None:
    workdir = tmp_path / "run"
    pair = start(workdir, data_dir, *ENDLESS)
    running.wait_for(lambda: len(losses(workdir)) > 3, *pair)
    pair[1].send_signal(signal.SIGTERM)
    said = ended(pair)
    assert [process.returncode for process in pair] == [75, 75], said
    assert "saved step" in said[0]


def test_a_second_signal_ends_the_first_at_once_although_the_other_does_not_answer_which_then_says_so(
    data_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    workdir = tmp_path / "run"
    pair = start(workdir, data_dir, *ENDLESS)
    running.wait_for(lambda: len(losses(workdir)) > 3, *pair)
    pair[1].send_signal(signal.SIGSTOP)
    pair[0].send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        pair[0].wait(3)
    pair[0].send_signal(signal.SIGTERM)
    assert pair[0].wait(10) == 128 + signal.SIGTERM
    pair[1].send_signal(signal.SIGCONT)
    said = ended(pair)[1]
    # XLA itself ends a process that its first one is lost to, unless a sum over both fails before.
    ours = "error: another process of this run does not answer" in said
    assert pair[1].returncode == 2 if ours else "another task died" in said, said
    assert "Traceback" not in said and "Fatal Python error" not in said
    assert running.train(workdir, data_dir, *CONSTANT, "--config.steps=40") == 0
    assert len(losses(workdir)) == 8
