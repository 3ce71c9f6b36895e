"""Signals before a run can save anything: they end the process at once, with an exit code that says so."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import NoReturn

RESUME = 75  # exit code of a run that was asked to stop and can go on (EX_TEMPFAIL)
FAILED = 2  # exit code of wrong input, and of a command that was interrupted
# Ctrl-C, the end of a lease or a job, and what SLURM's --signal=USR1 sends before that.
OF_A_RUN = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


def leave_at_once(resumable: bool) -> None:
    """From here on a signal ends the process, until something that can save takes the signals over.

    Exceptions would not do: those that are raised in a callback of a library are swallowed there.

    Args:
        resumable: whether the same command goes on later; else Ctrl-C alone is taken.
    """
    code = RESUME if resumable else FAILED
    advice = "start the same command again" if resumable else "interrupted; what had been saved is intact"

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        del frame
        os.write(
            sys.__stderr__.fileno() if sys.__stderr__ else 2, f"{signal.Signals(number).name}: {advice}\n".encode()
        )
        os._exit(code)

    for number in OF_A_RUN if resumable else (signal.SIGINT,):
        signal.signal(number, leave)
