"""Signals: the first asks a run to stop, the second ends it at once; afterwards they mean what they meant before."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import pytest

from archirf_jax.training.preemption import ELSEWHERE, SIGNALS, StopRequest
from tests import running

# A mutex that this thread holds already: nothing in Python runs here again, as while XLA compiles.
BLOCKED = """
import ctypes
from archirf_jax.training.preemption import StopRequest

libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(256)
with StopRequest(hard_exit=True):
    libc.pthread_mutex_lock(mutex)
    print("ready", flush=True)
    libc.pthread_mutex_lock(mutex)
"""
# Asked twice to end, once by each of two requests; between them and after them signals are the process's own.
TWICE = """
import os, signal, time
from archirf_jax.training.preemption import StopRequest

seen = []
own = signal.signal(signal.SIGUSR1, lambda number, frame: seen.append("own"))
for _ in range(2):
    with StopRequest(hard_exit=True) as stop:
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(0.2)
        seen.append(stop.name)
    os.kill(os.getpid(), signal.SIGUSR1)
    time.sleep(0.2)
print(seen, flush=True)
"""


def started(script: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", script]
    pipes: dict[str, Any] = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen(command, cwd=running.REPOSITORY, env=running.environment(), **pipes)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1"])
def test_each_of_the_signals_is_known_by_its_name_and_its_handler_comes_back(name: str) -> None:
    before = [signal.getsignal(sig) for sig in SIGNALS]
    with StopRequest(hard_exit=True) as stop:
        assert not stop.requested() and stop.name is None
        os.kill(os.getpid(), signal.Signals[name])
        deadline = time.monotonic() + 10
        while not stop.requested() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert stop.requested() and stop.name == name
    assert [signal.getsignal(sig) for sig in SIGNALS] == before and stop.requested()
    assert signal.set_wakeup_fd(-1) == -1  # nor does anything listen any more


def test_a_signal_elsewhere_stops_this_process_too(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr("archirf_jax.sharding.anywhere", lambda here: bool(asked.append(here)) or len(asked) > 1)
    with StopRequest() as stop:
        assert not stop.requested() and stop.name is None
        assert stop.requested() and stop.name == ELSEWHERE and asked == [False, False]


def test_where_the_process_must_live_on_a_second_signal_raises() -> None:
    """As in a notebook, whose kernel is not to end."""
    with pytest.raises(KeyboardInterrupt), StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        while not stop.requested():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
    assert stop.name == "SIGINT"


def test_outside_the_main_thread_no_signal_is_waited_for() -> None:
    before, found = [signal.getsignal(sig) for sig in SIGNALS], []

    def run() -> None:
        with StopRequest() as stop:
            found.append(stop.requested())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [False] and [signal.getsignal(sig) for sig in SIGNALS] == before


def test_the_handlers_come_back_after_an_error_too() -> None:
    before = [signal.getsignal(sig) for sig in SIGNALS]
    with pytest.raises(KeyError), StopRequest() as stop:
        assert [signal.getsignal(sig) for sig in SIGNALS] != before
        raise KeyError
    assert [signal.getsignal(sig) for sig in SIGNALS] == before and stop.name is None


def test_requests_do_not_count_the_signals_of_earlier_ones() -> None:
    process = started(TWICE)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert output == "['SIGUSR1', 'own', 'SIGUSR1', 'own']\n"


def test_a_second_signal_ends_a_process_at_once_even_one_that_python_does_not_reach() -> None:
    process = started(BLOCKED)
    try:
        assert process.stdout and process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGUSR1)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1.5)
        begun = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 128 + signal.SIGTERM
        assert time.monotonic() - begun < 10
    finally:
        process.kill()
        process.communicate()
