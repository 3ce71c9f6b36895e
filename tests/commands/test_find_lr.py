"""`find_lr` as a person runs it: on a network small enough for a test."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest

from archirf_jax.training import range_test
from tests import running

TINY = (running.CONFIG, "--config.model.hidden_size=32", "--config.model.depth=1", "--config.batch_size=32")
QUICK = (*TINY, "--config.mesh.data=1", "--steps=24", "--min=1e-5", "--max=1")


@pytest.fixture(autouse=True)
def empty(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working directory, for what is written there by default."""
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")


def written() -> set[str]:
    return {path.name for path in pathlib.Path().iterdir()}


@pytest.mark.slow
def test_a_sweep_writes_a_plot_and_its_numbers_and_nothing_else(
    data_dir: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with running.messages() as said:
        running.call("find_lr", *QUICK, f"--config.data.dir={data_dir}", "--json")
    assert written() == {"lr.png", "lr.json"}
    kept = json.loads(pathlib.Path("lr.json").read_text())
    rates = np.asarray(kept["rates"])
    np.testing.assert_allclose(rates, np.geomspace(1e-5, 1, 24)[: len(rates)], rtol=1e-4)
    assert np.all(np.isfinite(kept["losses"])) and min(kept["losses"]) < kept["first"]
    assert json.loads(capsys.readouterr().out)["rate"] == kept["suggestion"]["rate"]  # one object and nothing else
    assert any(f"optimizer.learning_rate={kept['suggestion']['rate']:g}" in line for line in said)


@pytest.mark.slow
def test_a_loss_that_cannot_fall_ends_well_without_a_suggestion(data_dir: pathlib.Path) -> None:
    still = ("--steps=10", "--min=1e-12", "--max=1e-11", "--out=new/x.png")
    running.call("find_lr", *QUICK, f"--config.data.dir={data_dir}", *still)
    assert json.loads(pathlib.Path("new", "x.json").read_text())["suggestion"]["rate"] is None


def test_a_schedule_is_plotted_without_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(range_test, "sweep", None)
    running.call("find_lr", *QUICK, "--plot_schedule", "--config.data.name=nothing")
    assert pathlib.Path("schedule.png").read_bytes().startswith(b"\x89PNG")
    assert written() == {"schedule.png"}


# Arguments -> the flag or field that the answer names.
BAD = {
    "--min=1 --max=0.1": "--min",
    "--min=0": "--min",
    "--steps=9": "--steps",
    "--out=lr.jpg": "--out",
    "--out=/dev/null/lr.png": "--out",
    "--config.optimizer.name=sgd": "config.optimizer.name",
    "--config.batch_size=0": "config.batch_size",
    "--config.model.num_heads=5": "config.model.num_heads",
    "--config.batch_size=24 --config.accumulation=5": "config.batch_size",
    "--config.data.name=nothing": "config.data.name",
    "--config.schedule.name=sine": "config.schedule.name",
    "--plot_schedule --config.schedule.name=sine": "config.schedule.name",
    "--plot_schedule --config.steps=50": "config.schedule.warmup_steps",
}


@pytest.mark.parametrize("arguments", BAD)
def test_a_mistake_is_answered_with_its_flag_or_field(arguments: str, data_dir: pathlib.Path) -> None:
    refusal = running.refused("find_lr", *QUICK, f"--config.data.dir={data_dir}", *arguments.split(" "))
    assert refusal.flag == BAD[arguments], refusal
    assert not written()
