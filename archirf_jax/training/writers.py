"""What a run tells: metrics.jsonl, TensorBoard events, and a progress bar or plain lines."""

from __future__ import annotations

import json
import pathlib
import sys
from typing import Any

import tqdm
from absl import logging
from tensorboardX import SummaryWriter

METRICS = "metrics.jsonl"


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
        self._events = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1) if tensorboard else None

    def write(self, step: int, values: dict[str, float]) -> None:
        """Append one row."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        if self._events:
            for name, value in values.items():
                self._events.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close."""
        self._file.close()
        if self._events:
            self._events.close()


def read_metrics(workdir: pathlib.Path) -> list[dict[str, float]]:
    """All rows of a run's metrics.jsonl; a line that a crash or a person broke is named and left out."""
    path = workdir / METRICS
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    rows = [_row(line) for line in lines]
    for number, row in enumerate(rows, 1):
        if row is None:
            logging.warning("%s line %d is no row of metrics and is left out", path, number)
    return [row for row in rows if row is not None]


def _row(line: str) -> dict[str, float] | None:
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        return None
    return row if isinstance(row, dict) and "step" in row and "loss" in row else None


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
        shown = [f"loss {values['loss']:.4f}"]
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
