"""Signals that ask a run to stop after the steps under way; a second one stops it at once."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

from absl import logging

from archirf_jax import sharding

# Ctrl-C, the end of a lease or a job, and what SLURM's --signal=USR1 sends before that.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
ELSEWHERE = "a signal to another process"


@contextlib.contextmanager
def leaving_at_once(code: int) -> Iterator[None]:
    """End this process with an exit code at a signal where no `StopRequest` is entered: there is nothing to save."""

    def leave(number: int, frame: FrameType | None) -> None:
        del frame
        logging.info("%s: start the same command again", signal.Signals(number).name)
        os._exit(code)

    previous = {sig: signal.signal(sig, leave) for sig in SIGNALS}
    try:
        yield
    finally:
        for sig, handler in previous.items():
            signal.signal(sig, handler)


class StopRequest:
    """Context manager; `name` is the signal's name once one came, else None. Only in the main thread."""

    def __init__(self) -> None:
        self.name: str | None = None
        self._previous: dict[signal.Signals, Any] = {}
        self._heard, self._told = socket.socketpair()

    def __enter__(self) -> StopRequest:
        # Python's handlers wait while XLA compiles; this socket does not, so a second signal is heard even then.
        self._told.setblocking(False)
        self._wakeup = signal.set_wakeup_fd(self._told.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._watch, daemon=True).start()
        self._previous = {sig: signal.signal(sig, self._handle) for sig in SIGNALS}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for sig, handler in self._previous.items():
            signal.signal(sig, handler)
        signal.set_wakeup_fd(self._wakeup)
        self._told.close()

    def heard(self) -> bool:
        """Whether to stop; of several processes all must ask at the same step, and get the same answer."""
        asked = sharding.anywhere(self.name is not None)
        if asked:
            self.name = self.name or ELSEWHERE
        return asked

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.name = self.name or signal.Signals(number).name

    def _watch(self) -> None:
        asked = 0
        while numbers := self._heard.recv(16):
            asked += sum(number in SIGNALS for number in numbers)
            if asked > 1:
                os._exit(128 + numbers[-1])
        self._heard.close()
