"""Metrics of the steps under way: read late, averaged, timed; a step that a guard stopped is found here."""

from __future__ import annotations

import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Iterator

import jax
import numpy as np

Row = dict[str, float]
Sums = dict[str, list[float]]
STOPPED = "stopped"  # the metric that is above 0 at a step that was not done


class Stopped(Exception):
    """A guard stopped a step before it was done.

    Attributes:
        step: how many were done before it.
        reason: a key of `guard.REASONS`.
    """

    def __init__(self, step: int, reason: int) -> None:
        super().__init__(f"step {step} was not done")
        self.step, self.reason = step, reason


class Meter:
    """Reads metrics one dispatch late, so that the device always has work queued, and reports every so many steps.

    Args:
        report: called with (step, means since the last report, "images_per_second", "seconds_per_step",
            "data_wait": the share of time in which the host waited for data, and "flops_utilisation").
        every: steps between two reports.
        end: the last step, which is reported too.
        batch_size: images a step.

    Attributes:
        seconds_per_step: of the latest dispatch.
        ideal_seconds: a step's arithmetic at the devices' peak; None = unknown.
        once: what only the next row contains besides the means.
        latest: the last row.
    """

    def __init__(
        self,
        report: Callable[[int, Row], None],
        every: int,
        end: int,
        batch_size: int,
    ) -> None:
        self._report, self._every, self._end = report, every, end
        self._batch_size = batch_size
        self._pending: deque[tuple[int, int, dict[str, jax.Array]]] = deque()
        self._sums: dict[str, np.ndarray] = {}
        self._timed, self._seconds, self._waited = 0, 0.0, 0.0
        self._last, self._running = time.perf_counter(), False
        self.seconds_per_step = math.inf
        self.ideal_seconds: float | None = None
        self.once: Row = {}
        self.latest: Row = {}

    def add(self, step: int, n: int, rows: dict[str, jax.Array]) -> None:
        """Take the metrics (>= n, 2), sums and weights, of the n steps that end at `step`; read the dispatch before.

        Raises:
            Stopped: a step was not done; those before it are reported.
        """
        self._pending.append((step, n, rows))
        self.settle(keep=1)

    def settle(self, keep: int = 0) -> None:
        """Read all but the newest `keep` dispatches; raises as `add`."""
        while len(self._pending) > keep:
            step, n, rows = self._pending.popleft()
            values = {name: np.asarray(row, np.float64)[:n] for name, row in rows.items()}
            self._clock(n)
            reasons = values.pop(STOPPED, np.zeros((n, 2)))[:, 0]
            done = int(np.argmax(reasons > 0)) if np.any(reasons) else n
            for name, row in values.items():
                # Added one by one, so that the mean does not depend on where dispatches and restarts cut the steps.
                so_far = self._sums.get(name, np.zeros(2))
                self._sums[name] = np.add.accumulate([so_far, *row[:done]])[-1]
            if done < n:
                if any(weight > 0 for _, weight in self._sums.values()):
                    self._flush(step - n + done)
                raise Stopped(step - n + done, int(reasons[done]))
            if step % self._every == 0 or step == self._end:
                self._flush(step)

    def unreported(self) -> Sums:
        """What the steps since the last report add to the next one, name -> [sum, weight]; what is read so far."""
        return {name: total.tolist() for name, total in self._sums.items()}

    def go_on(self, latest: Row, unreported: Sums) -> None:
        """Begin with another meter's last row and what it had not reported: the next row is over the same steps."""
        self.latest = latest
        self._sums = {name: np.asarray(total, np.float64) for name, total in unreported.items()}

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside as waiting for data."""
        begun = time.perf_counter()
        yield
        self._waited += time.perf_counter() - begun

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the work inside out of the speed."""
        begun = time.perf_counter()
        yield
        self._last += time.perf_counter() - begun

    def _clock(self, n: int) -> None:
        now = time.perf_counter()
        if self._running:  # the first dispatch warms up
            self._seconds, self._timed = self._seconds + now - self._last, self._timed + n
            self.seconds_per_step = (now - self._last) / n
        self._last, self._running = now, True

    def _flush(self, step: int) -> None:
        # A weight that is not above 0 means that there is no value, such as the losses of skipped updates.
        row = {name: float(total / weight) for name, (total, weight) in self._sums.items() if weight > 0}
        row = {name: row[name] for name in sorted(row, key=lambda name: (name != "loss", "/" in name))}
        if self._timed:
            seconds = self._seconds / self._timed
            row |= {"images_per_second": self._batch_size / seconds, "seconds_per_step": seconds}
            row["data_wait"] = min(1.0, self._waited / self._seconds)
            if self.ideal_seconds is not None:
                row["flops_utilisation"] = self.ideal_seconds / seconds
        self.latest = row | self.once
        self._report(step, self.latest)
        self._sums, self._timed, self._seconds, self._waited, self.once = {}, 0, 0.0, 0.0, {}
