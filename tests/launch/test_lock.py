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
    said = (
        rf"--workdir: '{tmp_path}' is in use by process {process.pid} on {socket.gethostname()} since 20\d\d-.*; wait"
    )
    for _ in range(2):  # whoever was refused leaves the note and the lock as they are
        with pytest.raises(UserError, match=said) as refused, lock(tmp_path):
            raise AssertionError("two hold it")
        assert "\n" not in str(refused.value)
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


def test_a_directory_in_use_is_not_claimed_and_nothing_is_written_there(tmp_path: pathlib.Path) -> None:
    process, made = holder(tmp_path), dit_rf.get_config()
    try:
        with pytest.raises(UserError, match="in use by process"), configuration.claimed(made, tmp_path):
            raise AssertionError("two hold it")
        assert [path.name for path in tmp_path.iterdir()] == [FILE]
    finally:
        process.communicate("")
    with configuration.claimed(made, tmp_path):
        with pytest.raises(UserError, match=f"in use by process {os.getpid()} "), lock(tmp_path):
            raise AssertionError("two hold it")
    made.seed += 1
    (tmp_path / "checkpoints/1").mkdir(parents=True)
    with pytest.raises(UserError, match="another configuration"), configuration.claimed(made, tmp_path):
        raise AssertionError("another run's")
    assert_free(tmp_path)  # whoever was refused for another reason holds it no longer


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_told_of_and_used(
    code: int, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    entered = False
    with lock(tmp_path):
        entered = True
    assert entered and f"{tmp_path} cannot be locked ({os.strerror(code)})" in caplog.text


def test_a_place_that_can_be_no_directory_is_named(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be a run directory: Not a directory"):
        with configuration.claimed(dit_rf.get_config(), tmp_path / "file/run"):
            pass
