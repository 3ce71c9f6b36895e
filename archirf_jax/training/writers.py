"""What a run tells: metrics.jsonl, TensorBoard events, and a progress bar or plain lines."""

from __future__ import annotations

import json
import os
import pathlib
import sys
import time
from typing import Any

import tqdm
from absl import logging
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

METRICS = "metrics.jsonl"
CLOCKED = ("images_per_second", "seconds_per_step", "data_wait", "flops_utilisation", "compile_seconds")


class Metrics:
    """metrics.jsonl, one object a line with "step", and TensorBoard events of the same numbers.

    Args:
        workdir: where both are written.
        step: the step the run starts from; later lines of an interrupted run are cut off.
        tensorboard: whether to write events.
    """

    def __init__(self, workdir: pathlib.Path, step: int, tensorboard: bool) -> None:
        path = workdir / METRICS
        kept = [row for row in read_metrics(workdir) if row["step"] <= step]
        part = path.with_suffix(".part")
        part.write_text("".join(json.dumps(row) + "\n" for row in kept))
        part.replace(path)
        self._file = path.open("a", buffering=1)
        self._events = Events(workdir / "tensorboard", step) if tensorboard else None

    def write(self, step: int, values: dict[str, float]) -> None:
        """Append one row."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        if self._events:
            self._events.write(step, values)

    def close(self) -> None:
        """Flush and close."""
        self._file.close()
        if self._events:
            self._events.close()


class Events:
    """TensorBoard events; those after `step` of an earlier start no longer count.

    Written here and now: tensorboardX's own thread ends on a full disk, and whoever writes more waits for it for ever.
    """

    def __init__(self, folder: pathlib.Path, step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._writer = EventsWriter(str(folder / "events"), f".{os.getpid()}")
        start = SessionLog(status=SessionLog.START)
        self._writer.write_event(Event(wall_time=time.time(), step=step + 1, session_log=start))

    def write(self, step: int, values: dict[str, float]) -> None:
        """Append the values of a step."""
        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._writer.write_event(Event(wall_time=time.time(), step=step, summary=Summary(value=scalars)))
        self._writer.flush()

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()


def read_metrics(workdir: pathlib.Path) -> list[dict[str, float]]:
    """All rows of a run's metrics.jsonl; a line that a crash or a person broke is named and left out."""
    path = workdir / METRICS
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    rows = [_row(line) for line in lines]
    for number, row in enumerate(rows, 1):
        if row is None:
            logging.warning("%s line %d is no row of metrics and is left out", path, number)
    return [row for row in rows if row is not None]


def told(workdir: pathlib.Path) -> list[dict[str, float]]:
    """The rows of a run without what its clock says, so that two runs which did the same are equal."""
    return [{name: value for name, value in row.items() if name not in CLOCKED} for row in read_metrics(workdir)]


def _row(line: str) -> dict[str, float] | None:
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        return None
    return row if isinstance(row, dict) and "step" in row else None


class Progress:
    """A bar with loss, images/s and time left on a terminal, plain lines elsewhere."""

    def __init__(self, step: int, steps: int) -> None:
        self._bar = None
        self._steps = steps
        if sys.stderr.isatty():
            self._bar = tqdm.tqdm(total=steps, initial=step, unit="step", dynamic_ncols=True)

    def update(self, step: int) -> None:
        """Move the bar to `step`."""
        if self._bar is not None:
            self._bar.update(step - self._bar.n)

    def report(self, step: int, values: dict[str, Any]) -> None:
        """Show loss and, once it is known, speed."""
        shown = [f"loss {values['loss']:.4f}" if "loss" in values else "no loss"]
        if values.get("skipped"):
            shown.append(f"{values['skipped']:.0%} of updates skipped")
        if "images_per_second" in values:
            shown.append(f"{values['images_per_second']:,.0f} images/s")
        if self._bar is not None:
            self._bar.set_postfix_str(", ".join(shown))
            return
        if "seconds_per_step" in values:
            shown.append(f"{_clock((self._steps - step) * values['seconds_per_step'])} left")
        logging.info("step %d/%d  %s", step, self._steps, "  ".join(shown))

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
