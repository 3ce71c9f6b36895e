"""`find_lr` as a person runs it: on a network small enough for a test."""

from __future__ import annotations

import json
import logging as std_logging
import pathlib
import re
import sys
from collections.abc import Callable

import numpy as np
import pytest

from archirf_jax.training import range_test
from tests import running
from tests.commands.alone import Command

FIND = Command("archirf_jax.find_lr")
TINY = (
    f"--config={running.REPOSITORY / 'configs' / 'dit_rf.py'}",
    *("--config.model.hidden_size=32", "--config.model.depth=1", "--config.batch_size=32"),
)
QUICK = ("--steps=24", "--min=1e-5", "--max=1")


@pytest.fixture
def find(tmp_path: pathlib.Path, data_dir: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """The command in an empty directory; what wrong arguments are answered with."""
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")

    def found(*arguments: str, wrong: bool = False) -> str:
        everything = (*TINY, *QUICK, f"--config.data.dir={data_dir}", *arguments)
        monkeypatch.setattr(sys, "argv", ["find_lr", *everything])  # where overrides are looked for
        if wrong:
            return FIND.complaint(*everything)
        FIND(*everything)
        return ""

    return found


def written() -> set[str]:
    return {path.name for path in pathlib.Path().iterdir()}


def test_a_sweep_writes_a_plot_and_its_numbers_and_nothing_else(
    find: Callable[..., str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(std_logging.INFO):
        find()
    assert written() == {"lr.png", "lr.json"}
    told = json.loads(pathlib.Path("lr.json").read_text())
    rates, rate = np.asarray(told["rates"]), told["suggestion"]["rate"]
    np.testing.assert_allclose(rates, np.geomspace(1e-5, 1, 24)[: len(rates)], rtol=1e-4)
    assert np.all(np.isfinite(told["losses"])) and min(told["losses"]) < told["first"]
    said = [record.getMessage() for record in caplog.records if record.name == "absl"]
    assert any(line.startswith(f"suggested maximum: optimizer.learning_rate={rate:g} (") for line in said)
    assert any(f"--config.optimizer.learning_rate={rate:g}" in line for line in said)


def test_a_loss_that_cannot_fall_ends_well_without_a_suggestion(
    find: Callable[..., str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(std_logging.INFO):
        find("--steps=10", "--min=1e-12", "--max=1e-11", "--out=new/x.png")
    assert json.loads(pathlib.Path("new", "x.json").read_text())["suggestion"]["rate"] is None
    assert any(record.getMessage().startswith("no suggestion: the loss never fell") for record in caplog.records)


def test_a_schedule_is_plotted_without_data(find: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(range_test, "sweep", None)
    find("--plot_schedule", "--config.data.dir=nowhere", "--config.data.name=nothing")
    assert pathlib.Path("schedule.png").read_bytes().startswith(b"\x89PNG")
    assert written() == {"schedule.png"}


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (("--min=1", "--max=0.1"), "--min: 1 must be 1e-30 or more and below --max=0.1"),
        (("--min=1", "--max=1"), "--min: 1 must be"),
        (("--min=0",), "--min: 0 must be 1e-30 or more"),
        (("--steps=9",), ".*--steps=9"),
        (("--out=lr.jpg",), r"--out: 'lr.jpg' must end in \.png"),
        (("--config.optimizer.name=sgd",), "config.optimizer.name: 'sgd' is not one of"),
        (("--config.batch_size=0",), "config.batch_size: 0 must be above 0"),
        (("--config.model.num_heads=5",), "config.model.num_heads: 5"),
        (("--config.batch_size=24", "--config.accumulation=5"), "config.batch_size: 24 is no multiple"),
        (("--config.data.name=nothing",), "config.data"),
        (("--config.schedule.name=sine",), "config.schedule.name: 'sine' is not one of .*cosine"),
        (("--plot_schedule", "--config.schedule.name=sine"), "config.schedule.name: 'sine' is not one of .*cosine"),
        (("--plot_schedule", "--config.steps=50"), "config.schedule.warmup_steps: 100 must be below steps=50"),
    ],
)
def test_mistakes_are_answered_in_one_line(find: Callable[..., str], arguments: tuple[str, ...], answer: str) -> None:
    assert re.match(answer, find(*arguments, wrong=True))
    assert not written()
