"""One run at a time in a directory, whoever holds it and however that ends."""

from __future__ import annotations

import errno
import fcntl
import os
import pathlib
import signal
import socket
import subprocess
import sys
from typing import Any

import pytest

from archirf_jax.errors import UserError
from archirf_jax.launch import config as configuration
from archirf_jax.launch.lock import FILE, lock
from configs import dit_rf
from tests import running

HOLDING = """
import pathlib, sys
from archirf_jax.launch.lock import lock

with lock(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(workdir: pathlib.Path) -> subprocess.Popen[str]:
    """Another process that holds the directory until its input ends."""
    command = [sys.executable, "-c", HOLDING, str(workdir)]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    process = subprocess.Popen(command, cwd=running.REPOSITORY, env=running.environment(), **pipes)  # type: ignore[call-overload]
    assert process.stdout.readline() == "held\n"
    return process


def assert_free(workdir: pathlib.Path) -> None:
    with lock(workdir):
        pass


@pytest.mark.parametrize("end", ["normal", "killed", "terminated"])
def test_a_second_process_is_refused_with_the_first_ones_number_until_that_ends(
    end: str, tmp_path: pathlib.Path
) -> None:
    process = holder(tmp_path)
    for _ in range(2):  # whoever was refused leaves the note and the lock as they are
        with pytest.raises(UserError) as caught, lock(tmp_path):
            raise AssertionError("two hold it")
        said = str(caught.value)
        assert caught.value.field == "workdir" and "\n" not in said
        assert f"process {process.pid} on {socket.gethostname()} " in said
    if end == "normal":
        process.communicate("")
    else:
        process.send_signal(signal.SIGKILL if end == "killed" else signal.SIGTERM)
    assert process.wait(20) == {"normal": 0, "killed": -signal.SIGKILL, "terminated": -signal.SIGTERM}[end]
    assert_free(tmp_path)


def test_it_is_free_after_an_error_inside(tmp_path: pathlib.Path) -> None:
    with pytest.raises(KeyError), lock(tmp_path):
        raise KeyError
    assert_free(tmp_path)


def test_the_note_is_of_the_holder_alone(tmp_path: pathlib.Path) -> None:
    (tmp_path / FILE).write_text("process 1 on another since ever, and a longer line than the next one will be\n" * 3)
    with lock(tmp_path):
        assert (tmp_path / FILE).read_text().startswith(f"process {os.getpid()} on ")
        assert (tmp_path / FILE).read_text().count("\n") == 1
    assert (tmp_path / FILE).read_text() == ""


def assert_refused(config: Any, workdir: pathlib.Path) -> None:
    with pytest.raises(UserError) as caught, configuration.claimed(config, workdir):
        raise AssertionError("two hold it")
    assert caught.value.field == "workdir"


def test_a_directory_in_use_is_not_claimed_and_nothing_is_written_there(tmp_path: pathlib.Path) -> None:
    process, made = holder(tmp_path), dit_rf.get_config()
    try:
        assert_refused(made, tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == [FILE]
    finally:
        process.communicate("")
    with configuration.claimed(made, tmp_path):
        assert_refused(made, tmp_path)
    made.seed += 1
    (tmp_path / "checkpoints/1").mkdir(parents=True)
    assert_refused(made, tmp_path)
    assert_free(tmp_path)  # whoever was refused for another reason holds it no longer


@pytest.mark.parametrize("after", ["gone", "another"])
def test_a_directory_whose_name_was_taken_is_not_ours_until_it_is_moved_back(
    after: str, tmp_path: pathlib.Path
) -> None:
    run, old = tmp_path / "run", tmp_path / "old"
    with configuration.claimed(dit_rf.get_config(), run) as held:
        held.check()
        run.rename(old)
        if after == "another":
            run.mkdir()
            (run / FILE).write_text("")
        with pytest.raises(UserError) as caught:
            held.check()
        assert caught.value.field == "workdir" and not held.still_ours()
        if after == "another":
            run.rename(tmp_path / "other")
        old.rename(run)
        held.check()


def test_a_link_in_place_of_the_lock_leaves_its_target_alone(tmp_path: pathlib.Path) -> None:
    victim, run = tmp_path / "victim", tmp_path / "run"
    victim.write_text("precious")
    run.mkdir()
    (run / FILE).symlink_to(victim)
    assert_refused(dit_rf.get_config(), run)
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_reported_and_used(
    code: int, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    entered = False
    with lock(tmp_path):
        entered = True
    assert entered and f"{tmp_path} cannot be locked ({os.strerror(code)})" in caplog.text
