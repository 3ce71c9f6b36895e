"""Metrics of the steps under way: read late, checked, averaged, timed."""

from __future__ import annotations

import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Iterator

import jax
import numpy as np

from archirf_jax.errors import UserError

Row = dict[str, float]


class Meter:
    """Reads metrics one dispatch late, so that the device always has work queued, and reports every so many steps.

    Args:
        report: called with (step, means since the last report and "images_per_second", "seconds_per_step").
        every: steps between two reports.
        end: the last step, which is reported too.
        batch_size: images a step.
    """

    def __init__(self, report: Callable[[int, Row], None], every: int, end: int, batch_size: int) -> None:
        self._report, self._every, self._end, self._batch_size = report, every, end, batch_size
        self._pending: deque[tuple[int, int, dict[str, jax.Array]]] = deque()
        self._sums: Row = {}
        self._count = self._timed = 0
        self._seconds, self._last, self._compiled = 0.0, time.perf_counter(), False
        self.seconds_per_step = math.inf

    def add(self, step: int, n: int, rows: dict[str, jax.Array]) -> None:
        """Take the metrics (>= n,) of the n steps that end at `step`; read those of the dispatch before."""
        self._pending.append((step, n, rows))
        self.settle(keep=1)

    def settle(self, keep: int = 0) -> None:
        """Read all but the newest `keep` dispatches.

        Raises:
            UserError: a metric is not finite; names it and the step.
        """
        while len(self._pending) > keep:
            step, n, rows = self._pending.popleft()
            values = {name: np.asarray(row)[:n] for name, row in rows.items()}
            self._clock(n)
            check_finite(step - n, values)
            for name, row in values.items():
                self._sums[name] = self._sums.get(name, 0.0) + float(np.sum(row, dtype=np.float64))
            self._count += n
            if step % self._every == 0 or step == self._end:
                self._flush(step)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the work inside out of the speed."""
        begun = time.perf_counter()
        yield
        self._last += time.perf_counter() - begun

    def _clock(self, n: int) -> None:
        now = time.perf_counter()
        if self._compiled:  # the first dispatch is mostly compilation
            self._seconds, self._timed = self._seconds + now - self._last, self._timed + n
            self.seconds_per_step = (now - self._last) / n
        self._last, self._compiled = now, True

    def _flush(self, step: int) -> None:
        row = {name: value / self._count for name, value in self._sums.items()}
        if self._timed:
            seconds = self._seconds / self._timed
            row |= {"images_per_second": self._batch_size / seconds, "seconds_per_step": seconds}
        self._report(step, row)
        self._sums, self._count, self._seconds, self._timed = {}, 0, 0.0, 0


def check_finite(before: int, values: dict[str, np.ndarray]) -> None:
    """Raise a UserError for the first metric and step that is not finite; values[name][0] is of step before + 1."""
    bad = [(int(np.argmin(np.isfinite(row))), name) for name, row in values.items() if not np.all(np.isfinite(row))]
    if bad:
        i, name = min(bad, key=lambda place: (place[0], place[1] != "loss"))
        raise UserError(
            f"{name} is {values[name][i]} at step {before + i + 1}; "
            "try a lower optimizer.learning_rate, a longer schedule.warmup_steps or a smaller optimizer.clip_norm"
        )
