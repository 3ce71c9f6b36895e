"""The results of a part: written as they come, so that a process that is killed loses only the row under way."""

from __future__ import annotations

import argparse
import json
import pathlib
import re
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

from archirf_jax.errors import UserError
from archirf_jax.files import atomic_write
from archirf_jax.launch import host

# Errors with which a row may fail while the others are still measured.
FAILURES = (
    *(UserError, ValueError, TypeError, KeyError, AssertionError, RuntimeError, OSError, NotImplementedError),
    *(ImportError, AttributeError, subprocess.SubprocessError),
)


def of_exception(e: BaseException) -> str:
    """What went wrong, in a line; all of it goes to the log."""
    traceback.print_exception(e)
    return f"{type(e).__name__}: {' '.join(str(e).split())[:500]}"


class Results:
    """Figures by name in a JSON file.

    Args:
        path: of the file.
        seconds: in which the part is to be done.
        figures: that are there already.
        rows: regular expression of the names of those that are measured.
    """

    def __init__(
        self, path: pathlib.Path, seconds: float = 0.0, figures: dict[str, Any] | None = None, rows: str = ""
    ) -> None:
        """As the class says."""
        self.path, self.figures, self._rows = path, figures or {}, re.compile(rows)
        self._end, self._lock = time.monotonic() + seconds, threading.Lock()

    @property
    def left(self) -> float:
        """Seconds until the part is to be done."""
        return self._end - time.monotonic()

    def wants(self, name: str) -> bool:
        """Whether the row of that name is to be measured."""
        return self._rows.search(name) is not None

    def add(self, name: str, value: Any) -> None:
        """Write a figure."""
        with self._lock:
            self.figures[name] = value
            text = json.dumps(self.figures, indent=1, default=float) + "\n"
            atomic_write(self.path, lambda file: file.write(text.encode()))

    def await_turn(self) -> None:
        """Say that all is prepared and wait until nothing else measures on this machine."""
        ready(self.path).touch()
        sys.stdin.readline()

    def measure(self, name: str, figures: Callable[[], dict[str, Any]], needs: float = 5.0) -> None:
        """Write a row if it is wanted; where it fails, the reason is its "error".

        Args:
            name: of the row.
            figures: measures it.
            needs: seconds that it takes at least; it is left out where fewer are left.
        """
        if not self.wants(name):
            return
        begun = time.monotonic()
        try:
            if self.left < needs:
                raise TimeoutError(f"left out: {self.left:.0f} s were left")
            found = dict(figures())
        except FAILURES as e:
            found = {"error": of_exception(e)}
        self.add(name, found | {"seconds": round(time.monotonic() - begun, 2)})

    def end(self, how: str) -> None:
        """Write how the part ended."""
        self.add("end", how)


def ready(path: pathlib.Path) -> pathlib.Path:
    """The file by which the process that writes `path` says that it can measure."""
    return path.with_suffix(".ready")


def of_file(path: pathlib.Path) -> Results:
    """What a part has written, to go on with."""
    return Results(path, figures=json.loads(path.read_text()) if path.exists() else None)


def started(*others: str) -> tuple[Results, bool, argparse.Namespace]:
    """(the results of the part that this process is, whether its sizes are small, `others`), from the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--rows", default="")
    parser.add_argument("--toy", action="store_true")
    for name in others:
        parser.add_argument(name)
    args = parser.parse_args()
    host.set_up()  # as the commands do
    return Results(args.out, args.seconds, rows=args.rows), args.toy, args
