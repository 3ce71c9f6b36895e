"""Signals that ask a run to stop after the steps under way; a second one stops it at once."""

from __future__ import annotations

import os
import signal
import socket
import threading
from types import FrameType, TracebackType
from typing import Any

import jax
from jax.experimental import multihost_utils

# Ctrl-C, the end of a lease or a job, and what SLURM's --signal=USR1 sends before that.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Context manager; `name` is the signal's name once one came, else None. Only in the main thread."""

    def __init__(self) -> None:
        self.name: str | None = None
        self._asked = 0
        self._previous: dict[signal.Signals, Any] = {}
        self._heard, self._told = socket.socketpair()

    def __enter__(self) -> StopRequest:
        # Python's handlers wait while XLA compiles; this socket does not, so a second signal is heard even then.
        self._told.setblocking(False)
        self._wakeup = signal.set_wakeup_fd(self._told.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._watch, daemon=True).start()
        ours = [sig for sig in SIGNALS if jax.process_count() == 1 or sig != signal.SIGTERM]
        self._previous = {sig: signal.signal(sig, self._handle) for sig in ours}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for sig, handler in self._previous.items():
            signal.signal(sig, handler)
        signal.set_wakeup_fd(self._wakeup)
        self._told.close()

    def heard(self) -> bool:
        """Whether to stop; of several processes all must ask equally often, and get the same answers."""
        self._asked += 1  # what the processes agree on is the number of a question, and none may be left out
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(self._asked):
            self.name = self.name or signal.SIGTERM.name
        return self.name is not None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if jax.process_count() > 1:
            # All processes must stop at one step: JAX's own watch of this signal tells the others.
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            self.name = self.name or signal.Signals(number).name

    def _watch(self) -> None:
        asked = 0
        while numbers := self._heard.recv(16):
            asked += sum(number in SIGNALS for number in numbers)
            if asked > 1:
                os._exit(128 + numbers[-1])
        self._heard.close()
