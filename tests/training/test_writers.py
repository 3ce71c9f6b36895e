"""metrics.jsonl survives crashes and resumes; progress is plain where there is no terminal."""

from __future__ import annotations

import json
import math
import os
import pathlib

import pytest
from tensorboardX.proto import event_pb2

from archirf_jax.errors import UserError
from archirf_jax.files import append_line, atomic_write
from archirf_jax.training.writers import Events, MetricsFile, read_losses, read_metrics, rows_without_times


def test_rows_after_the_restored_step_and_a_torn_last_line_are_cut_off(tmp_path: pathlib.Path) -> None:
    metrics = MetricsFile(tmp_path, 0)
    for step in (10, 20, 30):
        metrics.write(step, {"loss": step / 10})
    metrics.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "lo')
    assert [row["step"] for row in read_metrics(tmp_path)] == [10, 20, 30]
    metrics = MetricsFile(tmp_path, 20)
    metrics.write(30, {"loss": 7.0})
    metrics.close()
    assert read_metrics(tmp_path) == [{"step": 10, "loss": 1.0}, {"step": 20, "loss": 2.0}, {"step": 30, "loss": 7.0}]


BROKEN = [
    "broken",
    "[3]",
    '{"loss": 1.0}',
    '{"step": "x"}',
    '{"step": null}',
    '{"step": [1]}',
    '{"step": 1.5}',
    '{"step": true}',
    '{"step": 20, "loss": "low"}',
    '{"step": ' + "9" * 5000 + "}",
    "[" * 200_000,
]


@pytest.mark.parametrize("line", BROKEN, ids=lambda line: line[:20])
def test_a_broken_row_is_named_and_the_others_are_kept(
    line: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("archirf_jax.training.writers.logging.warning", lambda text, *args: said.append(text % args))
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 10, "loss": 1.0}}\n{line}\n{{"step": 40, "loss": 2.0}}\n')
    assert [row["step"] for row in read_metrics(tmp_path)] == [10, 40]
    assert len(said) == 1 and "line 2" in said[0]
    MetricsFile(tmp_path, 30)
    assert read_metrics(tmp_path) == [{"step": 10, "loss": 1.0}]


def test_the_end_of_a_long_file_is_found_without_reading_all_of_it(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [json.dumps({"step": step, "loss": 1 / step}) for step in range(1, 20_001)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    read = []
    monkeypatch.setattr("archirf_jax.training.writers.parse_json", lambda line: read.append(line) or json.loads(line))
    MetricsFile(tmp_path, 19_990).write(19_995, {"loss": 3.0})
    assert len(read) == 11
    assert read_losses(tmp_path) == ([*range(1, 19_991), 19_995], [*(1 / step for step in range(1, 19_991)), 3.0])


def test_a_row_without_end_is_left_out(tmp_path: pathlib.Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1, "loss": 2.0}\n{"step": ' + b"1" * 3 * 2**20)
    assert read_losses(tmp_path) == ([1], [2.0])
    MetricsFile(tmp_path, 5)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": 2.0}\n'


def test_metrics_are_not_cut_through_a_link(tmp_path: pathlib.Path) -> None:
    (tmp_path / "elsewhere").write_text('{"step": 1}\n{"step": 2}\n')
    (tmp_path / "metrics.jsonl").symlink_to(tmp_path / "elsewhere")
    MetricsFile(tmp_path, 1).write(2, {"loss": 1.0})
    assert (tmp_path / "elsewhere").read_text() == '{"step": 1}\n{"step": 2}\n'
    assert read_metrics(tmp_path) == [{"step": 1}, {"step": 2, "loss": 1.0}]


def test_a_row_is_whole_whatever_stood_before_it(tmp_path: pathlib.Path) -> None:
    metrics = MetricsFile(tmp_path, 0)
    metrics.write(10, {"loss": 1.0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 20, "lo')
    metrics.write(30, {"loss": 3.0, "seconds_per_step": 0.1})
    assert rows_without_times(tmp_path) == [{"step": 10, "loss": 1.0}, {"step": 30, "loss": 3.0}]


def test_rows_are_json_whatever_the_numbers_are(tmp_path: pathlib.Path) -> None:
    MetricsFile(tmp_path, 0).write(10, {"loss": 1.0, "a": math.inf, "b": math.nan, "c": -math.inf})
    assert json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=pytest.fail) == {"step": 10, "loss": 1.0}


def test_nothing_is_written_through_a_symbolic_link(tmp_path: pathlib.Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    for name in ("rows", "whole.part"):
        (tmp_path / name).symlink_to(victim)
    with pytest.raises(OSError):
        append_line(tmp_path / "rows", "theirs")
    atomic_write(tmp_path / "whole", b"theirs")
    assert victim.read_text() == "mine" and (tmp_path / "whole").read_bytes() == b"theirs"


def test_tensorboard_gets_the_same_numbers(tmp_path: pathlib.Path) -> None:
    metrics = Events(tmp_path / "tensorboard", 0)
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


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_rows_are_added_to_a_regular_file_alone(kind: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "metrics.jsonl"
    {"pipe": os.mkfifo, "device": lambda path: path.symlink_to("/dev/zero"), "folder": os.mkdir}[kind](path)
    with pytest.raises(UserError) as caught:
        MetricsFile(tmp_path, 0)
    assert caught.value.field == "workdir"
