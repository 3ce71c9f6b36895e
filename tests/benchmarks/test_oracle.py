"""The command that measures every cell: its tables, its file, and its exit code."""

from __future__ import annotations

import json
import pathlib

import pytest

from benchmarks import oracle
from tests.samplers import checks, compiled
from tests.samplers.checks import Check

FLOW = checks.rows()[0]


@pytest.mark.parametrize("holds", [True, False])
def test_the_command_prints_and_writes_every_cell_and_fails_where_one_does(
    holds: bool, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = Check("error of the exact trace", 1.25, "the stated error", holds)
    monkeypatch.setattr(checks, "rows", lambda: [FLOW])
    monkeypatch.setattr(oracle, "COLUMNS", (checks.BY_NAME["euler"],))
    monkeypatch.setattr(compiled, "driver", lambda row, column: Check("driver", 0.0, "0", True))
    monkeypatch.setattr(compiled, "likelihood", lambda rows: [[made]])
    monkeypatch.setattr(compiled, "dopri5", lambda: None)
    out = tmp_path / "cells.json"
    assert oracle.main(["--markdown", f"--out={out}"]) == (0 if holds else 1)
    printed = capsys.readouterr().out
    assert f"| flow linear | velocity | 0.99 | {'1.25' if holds else 'FAIL'} |" in printed
    assert "| classifier_free 2 | 1 of 2 B |" in printed
    found = json.loads(out.read_text())
    cells = {(cell["solver"], cell["guidance"], cell["check"]): cell for cell in found["cells"]}
    assert cells["likelihood", "none", made.name]["fails"] == ([] if holds else [0])
    assert cells["euler", "none", "order"]["measured"][0] == pytest.approx(0.99, abs=0.01)
    assert found["rows"] == [["flow linear", "velocity"]]
