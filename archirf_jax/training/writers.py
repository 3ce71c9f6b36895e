"""Where metrics go: metrics.jsonl, TensorBoard events, and a progress bar or plain lines."""

from __future__ import annotations

import json
import math
import mmap
import os
import pathlib
import sys
import time
from collections.abc import Iterator
from typing import Any, Protocol

import tqdm.auto
from absl import logging
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from archirf_jax.errors import UserError
from archirf_jax.files import append_line, atomic_write
from archirf_jax.untrusted import Unreadable, parse_json

METRICS = "metrics.jsonl"
LONGEST = 2**20  # bytes of a row
CLOCKED = ("images_per_second", "seconds_per_step", "data_wait", "flops_utilisation", "compile_seconds")
Row = dict[str, float]


class Writer(Protocol):
    """Takes the rows of metrics of a run."""

    def write(self, step: int, row: Row) -> None:
        """Take the means of the steps up to `step`."""

    def close(self) -> None:
        """Flush and close."""


class MetricsFile:
    """metrics.jsonl, one object a line with "step".

    Args:
        workdir: where it is written.
        step: the step the run starts from; later lines of an interrupted run are cut off.
    """

    def __init__(self, workdir: pathlib.Path, step: int) -> None:
        self._path = workdir / METRICS
        if self._path.exists() and not self._path.is_file():
            raise UserError("workdir", str(self._path), "is not a regular file, and rows are added to it; remove it")
        if self._path.is_symlink():  # a file of its own, so that what it pointed to stays as it is
            atomic_write(self._path, self._path.read_bytes())
        if self._path.exists():
            _cut(self._path, step)

    def write(self, step: int, row: Row) -> None:
        """Append one row."""
        finite = {name: value for name, value in row.items() if math.isfinite(value)}  # JSON has no others
        append_line(self._path, json.dumps({"step": step, **finite}, allow_nan=False))

    def close(self) -> None:
        """Nothing is open between two rows."""


class Events:
    """TensorBoard events; those after `step` of an earlier start no longer count.

    They are written synchronously: tensorboardX's own thread ends on a full disk, and later writes would never return.
    """

    def __init__(self, folder: pathlib.Path, step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._writer = EventsWriter(str(folder / "events"), f".{os.getpid()}")
        start = SessionLog(status=SessionLog.START)
        self._writer.write_event(Event(wall_time=time.time(), step=step + 1, session_log=start))

    def write(self, step: int, row: Row) -> None:
        """Append the values of a step."""
        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in row.items()]
        self._writer.write_event(Event(wall_time=time.time(), step=step, summary=Summary(value=scalars)))
        self._writer.flush()

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()


def rows(workdir: pathlib.Path) -> Iterator[Row]:
    """The rows of a run's metrics.jsonl; a line that is not one, such as after a crash, is named and left out."""
    path = workdir / METRICS
    if not path.is_file():
        return
    with path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(LONGEST), b""), 1):
            row = _row(line)
            if row is None:
                logging.warning("%s line %d is not a row of metrics and is left out", path, number)
            else:
                yield row


def read_metrics(workdir: pathlib.Path) -> list[Row]:
    """All `rows` of a run."""
    return list(rows(workdir))


def read_losses(workdir: pathlib.Path) -> tuple[list[float], list[float]]:
    """(steps, losses) of the rows that have one."""
    found = [(row["step"], row["loss"]) for row in rows(workdir) if "loss" in row]
    return [step for step, _ in found], [loss for _, loss in found]


def rows_without_times(workdir: pathlib.Path) -> list[Row]:
    """The rows of a run without what depends on the clock, so that two runs which did the same are equal."""
    return [{name: value for name, value in row.items() if name not in CLOCKED} for row in read_metrics(workdir)]


def _cut(path: pathlib.Path, step: int) -> None:
    """Cut off what comes after the last row up to `step`, looked for from the end: a file may have a million rows."""
    with open(os.open(path, os.O_RDWR | os.O_NOFOLLOW), "r+b") as file:
        end = os.fstat(file.fileno()).st_size
        if not end:
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            while end:
                start = content.rfind(b"\n", 0, end - 1) + 1
                row = _row(content[start : min(end, start + LONGEST)])
                if row is not None and row["step"] <= step:
                    break
                end = start
        file.truncate(end)


def _row(line: bytes) -> Row | None:
    try:
        row = parse_json(line)
    except Unreadable:
        return None
    numbers = isinstance(row, dict) and all(type(value) in (int, float) for value in row.values())
    return row if numbers and isinstance(row.get("step"), int) else None


class Progress:
    """A bar with loss, images/s and time left on a terminal or in a notebook, plain lines elsewhere."""

    def __init__(self, step: int, steps: int) -> None:
        self._steps, self._bar = steps, None
        terminal = sys.stderr is not None and sys.stderr.isatty()
        if terminal or "ipykernel" in sys.modules:
            self._bar = tqdm.auto.tqdm(total=steps, initial=step, unit="step", dynamic_ncols=True)

    def update(self, step: int) -> None:
        """Move the bar to `step`."""
        if self._bar is not None:
            self._bar.update(step - self._bar.n)

    def write(self, step: int, row: Row) -> None:
        """Show loss and, once it is known, speed."""
        shown: list[Any] = [f"loss {row['loss']:.4f}" if "loss" in row else "no loss"]
        if row.get("skipped"):
            shown.append(f"{row['skipped']:.0%} of updates skipped")
        if "images_per_second" in row:
            shown.append(f"{row['images_per_second']:,.0f} images/s")
        if self._bar is not None:
            self._bar.set_postfix_str(", ".join(shown))
            return
        if "seconds_per_step" in row:
            shown.append(f"{_clock((self._steps - step) * row['seconds_per_step'])} left")
        logging.info("step %d/%d  %s", step, self._steps, "  ".join(shown))

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
