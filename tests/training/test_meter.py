"""Metrics are means over the steps that were done, however these were cut, and speed is that of the steps alone."""

from __future__ import annotations

import json

import numpy as np
import pytest

from archirf_jax.training import guard
from archirf_jax.training.meter import STOPPED, Meter, Stopped


def pairs(*values: float, weight: float = 1.0) -> np.ndarray:
    return np.stack([np.asarray(values) * weight, np.full(len(values), weight)], axis=1)


def test_a_meter_reports_means_at_its_period_and_reads_one_dispatch_late() -> None:
    reported: list[tuple[int, dict[str, float]]] = []
    meter = Meter(lambda step, row: reported.append((step, row)), every=4, end=7, batch_size=10)
    meter.add(2, 2, {"loss": pairs(1.0, 2.0)})
    meter.add(4, 2, {"loss": pairs(3.0, 4.0)})
    assert not reported
    meter.settle()
    assert reported[0][0] == 4 and reported[0][1]["loss"] == 2.5
    meter.add(7, 3, {"loss": pairs(1.0, 2.0, 6.0, 100.0)})  # rows beyond the dispatch's steps mean nothing
    meter.settle()
    assert reported[1][0] == 7 and reported[1][1]["loss"] == 3.0


def test_means_are_sums_over_weights_and_what_has_no_weight_is_left_out() -> None:
    reported: list[dict[str, float]] = []
    meter = Meter(lambda step, row: reported.append(row), every=2, end=2, batch_size=10)
    uneven = np.concatenate([pairs(1.0, weight=1.0), pairs(4.0, weight=3.0)])
    meter.once["compile_seconds"] = 5.0
    meter.add(2, 2, {"a": uneven, "b": np.zeros((2, 2))})
    meter.settle()
    assert reported[0]["a"] == pytest.approx(13 / 4) and "b" not in reported[0]
    assert reported[0]["compile_seconds"] == 5.0 and not meter.once


def test_a_meter_that_goes_on_reports_the_mean_that_one_alone_would_have() -> None:
    rng = np.random.default_rng(0)
    values = (rng.random(50) * 10.0 ** rng.integers(-9, 9, 50)).tolist()  # whose sum depends on how they are grouped
    reported: list[dict[str, float]] = []
    alone, first, second = (Meter(lambda step, row: reported.append(row), 50, 50, batch_size=1) for _ in range(3))
    alone.add(50, 50, {"loss": pairs(*values, weight=3.0)})
    alone.settle()
    first.add(23, 23, {"loss": pairs(*values[:23], weight=3.0)})
    first.settle()
    second.go_on({}, json.loads(json.dumps(first.unreported())))
    second.add(50, 27, {"loss": pairs(*values[23:], weight=3.0)})
    second.settle()
    assert len(reported) == 2 and reported[0] == reported[1]
    assert first.unreported() and second.unreported() == {}


def test_a_meter_leaves_pauses_and_the_first_dispatch_out_of_the_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("archirf_jax.training.meter.time.perf_counter", lambda: now[0])
    reported: list[dict[str, float]] = []
    meter = Meter(lambda step, row: reported.append(row), every=3, end=9, batch_size=10)
    meter.ideal_seconds = 0.25
    for step, seconds in ((1, 100.0), (2, 0.5), (3, 0.5)):
        if step == 3:
            with meter.paused():
                now[0] += 1000
            with meter.waiting():
                now[0] += 0.25
                seconds -= 0.25
        now[0] += seconds
        meter.add(step, 1, {"loss": pairs(1.0)})
        meter.settle()
    assert reported[0]["seconds_per_step"] == pytest.approx(0.5)
    assert reported[0]["images_per_second"] == pytest.approx(20)
    assert reported[0]["data_wait"] == pytest.approx(0.25)
    assert reported[0]["flops_utilisation"] == pytest.approx(0.5)


def test_the_step_that_was_not_done_is_named_with_its_reason() -> None:
    reported: list[tuple[int, dict[str, float]]] = []
    meter = Meter(lambda step, row: reported.append((step, row)), every=4, end=8, batch_size=10)
    reasons = pairs(0.0, 0.0, guard.JUMP, 0.0)
    meter.add(14, 4, {"loss": pairs(1.0, 2.0, 7.0, 7.0), STOPPED: reasons})
    with pytest.raises(Stopped) as stopped:
        meter.settle()
    assert stopped.value.step == 12 and stopped.value.reason == guard.JUMP
    assert reported == [(12, {"loss": 1.5})]  # of the steps since the last row that were done
