"""Signals that ask a run to stop after the steps under way; a second one stops it at once."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from types import FrameType, TracebackType
from typing import Any

from archirf_jax import sharding

# Ctrl-C, the end of a lease or a job, and what SLURM's --signal=USR1 sends before that.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
ELSEWHERE = "a signal to another process"


class StopRequest:
    """Context manager; `name` is the signal's name once one came, else None. Outside the main thread none comes.

    Args:
        hard_exit: a second signal ends the process at once, whatever it does; otherwise it raises KeyboardInterrupt
            when Python is reached.
    """

    def __init__(self, hard_exit: bool = False) -> None:
        self.name: str | None = None
        self._hard_exit = hard_exit
        self._previous: dict[signal.Signals, Any] = {}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            if self._hard_exit:
                self._watch()
            self._previous = {sig: signal.signal(sig, self._handle) for sig in SIGNALS}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for sig, handler in self._previous.items():
            signal.signal(sig, handler)
        self._stack.close()

    def requested(self) -> bool:
        """Whether to stop; of several processes all must ask at the same step, and get the same answer."""
        asked = sharding.anywhere(self.name is not None)
        if asked:
            self.name = self.name or ELSEWHERE
        return asked

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.name is not None and not self._hard_exit:
            raise KeyboardInterrupt
        self.name = self.name or signal.Signals(number).name

    def _watch(self) -> None:
        # Python's handlers wait while XLA compiles; this socket does not, so a second signal is noticed even then.
        received, sent = socket.socketpair()
        sent.setblocking(False)
        wakeup = signal.set_wakeup_fd(sent.fileno(), warn_on_full_buffer=False)
        self._stack.callback(sent.close)
        self._stack.callback(signal.set_wakeup_fd, wakeup)
        threading.Thread(target=_exit_at_second, args=(received,), daemon=True).start()


def _exit_at_second(received: socket.socket) -> None:
    asked = 0
    while numbers := received.recv(16):
        asked += sum(number in SIGNALS for number in numbers)
        if asked > 1:
            os._exit(128 + numbers[-1])
    received.close()
