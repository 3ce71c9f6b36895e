"""metrics.jsonl survives crashes and resumes; progress is plain where there is no terminal."""

from __future__ import annotations

import pathlib

import pytest
from tensorboardX.proto import event_pb2

from archirf_jax.training.writers import Metrics, read_metrics


def test_rows_after_the_restored_step_and_a_torn_last_line_are_cut_off(tmp_path: pathlib.Path) -> None:
    metrics = Metrics(tmp_path, 0, tensorboard=False)
    for step in (10, 20, 30):
        metrics.write(step, {"loss": step / 10})
    metrics.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "lo')
    assert [row["step"] for row in read_metrics(tmp_path)] == [10, 20, 30]
    metrics = Metrics(tmp_path, 20, tensorboard=False)
    metrics.write(30, {"loss": 7.0})
    metrics.close()
    assert read_metrics(tmp_path) == [{"step": 10, "loss": 1.0}, {"step": 20, "loss": 2.0}, {"step": 30, "loss": 7.0}]


def test_a_broken_row_is_named_and_the_others_are_kept(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("archirf_jax.training.writers.logging.warning", lambda text, *args: said.append(text % args))
    (tmp_path / "metrics.jsonl").write_text('{"step": 10, "loss": 1.0}\nbroken\n[3]\n{"step": 40, "loss": 2.0}\n')
    assert [row["step"] for row in read_metrics(tmp_path)] == [10, 40]
    assert ["line 2" in said[0], "line 3" in said[1], len(said)] == [True, True, 2]


def test_tensorboard_gets_the_same_numbers(tmp_path: pathlib.Path) -> None:
    metrics = Metrics(tmp_path, 0, tensorboard=True)
    metrics.write(10, {"loss": 0.25, "grad_norm": 2.0})
    metrics.close()
    found = {}
    for file in (tmp_path / "tensorboard").glob("events.*"):
        data = file.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            event = event_pb2.Event.FromString(data[12 : 12 + length])
            found |= {(event.step, value.tag): value.simple_value for value in event.summary.value}
            data = data[16 + length :]
    assert found == {(10, "loss"): 0.25, (10, "grad_norm"): 2.0}


def test_a_directory_without_metrics_has_no_rows(tmp_path: pathlib.Path) -> None:
    assert read_metrics(tmp_path) == []
