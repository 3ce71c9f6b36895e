"""The parts that measure a GPU run at small sizes, and what they find here is right."""

from __future__ import annotations

import json
import pathlib
import sys
from typing import Any

import jax
import pytest

from archirf_jax.data.fields import shapes
from archirf_jax.tasks.building import make_task
from benchmarks.gpu import report
from benchmarks.gpu.__main__ import main, numbers
from benchmarks.gpu.networks import NETWORKS
from benchmarks.gpu.ours import TOY
from benchmarks.gpu.results import Results
from tests import running


def test_a_row_that_fails_or_has_no_time_leaves_the_others(tmp_path: pathlib.Path) -> None:
    results = Results(tmp_path / "part.json", seconds=60)

    def failing() -> dict[str, float]:
        raise ValueError("too large")

    results.measure("bad", failing)
    results.measure("late", lambda: {"value": 1.0}, needs=100)
    results.measure("good", lambda: {"value": 2.0})
    found = json.loads((tmp_path / "part.json").read_text())
    assert "too large" in found["bad"]["error"] and "error" in found["late"] and found["good"]["value"] == 2


def test_numbers_of_parts() -> None:
    assert numbers("1-3,5") == [1, 2, 3, 5]


def test_adm_which_is_not_stepped_at_small_sizes_has_a_step() -> None:
    task: Any = make_task(NETWORKS["ADM, ImageNet-64"].config(True))
    key = jax.eval_shape(jax.random.key, 0)
    state = jax.eval_shape(task.init, key, {})
    after, metrics = jax.eval_shape(task.step, state, {}, shapes(task.fields, 2), key)
    assert jax.tree.structure(after) == jax.tree.structure(state) and metrics.keys() >= {"loss", "skipped"}


@pytest.mark.slow
def test_what_is_computed_is_right_and_networks_are_stepped(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = "--rows=^(?!killed)"  # that is benchmarks.crash, as commands/test_interruptions.py runs it
    monkeypatch.setattr(sys, "argv", ["gpu", "--toy", "--parts=1-2", "--seconds=1800", rows, f"--out={tmp_path}"])
    monkeypatch.setenv("XLA_FLAGS", running.ONE_DEVICE)  # of the parts, which are processes
    monkeypatch.chdir(running.REPOSITORY)
    assert main() == 0
    right, ours = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("right", "ours"))
    assert not [row for row in right.values() if isinstance(row, dict) and "error" in row], right
    assert right["golden cases in float32"]["wrong"] == right["golden cases in bfloat16"]["wrong"] == []
    assert (
        right["attention in bfloat16"]["largest"] < 1e-2 and right["forward derivative in bfloat16"]["largest"] < 5e-2
    )
    told = report.report(report.read(tmp_path))
    for name in TOY:
        kind, _, network = name.partition(", ")
        assert ours[name]["images_per_second"] > 0
        if kind == "step":
            assert ours[name]["skipped"] == 0 and f"| {network} | 2 |" in told
    peer = json.loads((tmp_path / "peers_dit_xl_2.json").read_text())
    assert peer["end"] == "done" and {"error", "images_per_second"} & peer["step, DiT-XL/2"].keys()
