"""The tables of docs/performance.md say what the results say, and name what they do not."""

from __future__ import annotations

import json
import pathlib
import sys
from typing import Any

import pytest

from benchmarks.gpu import report
from benchmarks.machine import COMMIT, commit

ABOUT = {"device": "some GPU", "commit": "abc1234"}
RESULTS: dict[str, Any] = {
    "ours": {
        "about": ABOUT,
        "matrix_operations_per_second": 5e14,
        "step, DiT-XL/2": {
            "batch": 4,
            "images_per_second": 300.0,
            "share_of_matrix_rate": 0.25,
            "program_bytes": 3 * 2**30,
            "compile_seconds": 7.0,
        },
        "step, DiT-B/2": {"error": "ValueError: a | b"},
        "sampling, DiT-XL/2, guided": {"batch": 64, "images_per_second": 9.0},
        "end": "cut: its time was over",
    },
    "peers_dit_xl_2": {
        "step, DiT-XL/2": {
            "batch": 4,
            "images_per_second": 200.0,
            "peak_bytes": 2**31,
            "attention": "CUDNN_ATTENTION",
            "torch": "2.x",
        },
        "sampling, DiT-XL/2, guided": {"images_per_second": 6.0},
        "end": "done",
    },
    "right": {
        "about": ABOUT,
        "golden cases in float32": {
            "errors": {"dit_a": 1e-6, "dit_b": 4e-6, "adm_a": 1.0},
            "wrong": ["adm_a"],
            "failed": {"edm2_a": "RuntimeError: x"},
            "late": ["unet_a"],
        },
        "end": "done",
    },
    "loop": {"start-up": {"cold_seconds": 90.0, "warm_seconds": 12.5}, "end": "done"},
}


def rows(text: str, first: str) -> list[list[str]]:
    """The cells of the rows of tables that begin so."""
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith(first)]


@pytest.fixture
def text(tmp_path: pathlib.Path) -> str:
    for name, part in RESULTS.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(part))
    return report.report(report.read(tmp_path))


def test_a_step_is_set_beside_that_of_pytorch(text: str) -> None:
    (step,), (sampler,) = rows(text, "| DiT-XL/2 |"), rows(text, "| DiT-XL/2, guided |")
    assert step == ["DiT-XL/2", "4", "300", "200", "1.5 (≥ 1.15)", "0.25 (≥ 0.5)", "3 / 2", "7 / –", "CUDNN_ATTENTION"]
    assert sampler == ["DiT-XL/2, guided", "64", "9", "6", "1.5 (≥ 1.3)"]
    assert rows(text, "| DiT-S/2")[0][1:5] == ["–"] * 4


def test_the_largest_error_of_a_kind_is_reported_and_what_is_wrong_or_late(text: str) -> None:
    found = {row[0].rpartition(", ")[2]: row[1:] for row in rows(text, "| golden cases in float32")}
    assert found == {
        "dit": ["4.0e-06", "none", "none"],
        "adm": ["1.0e+00", "adm_a", "none"],
        "edm2": ["–", "edm2_a: RuntimeError: x", "none"],
        "unet": ["–", "none", "unet_a"],
    }


def test_what_is_missing_is_named(text: str) -> None:
    lines = text.splitlines()
    assert "- `picture.json` is missing." in lines and "- `peers_dit_s_2.json` is missing." in lines
    assert "- `ours`: cut: its time was over." in lines
    assert "- `ours`, step, DiT-B/2: ValueError: a | b" in lines
    assert not any("`right" in line or "`loop" in line for line in lines)
    assert "device some GPU; commit abc1234; torch 2.x" in text


def test_only_what_is_between_the_marks_is_replaced(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "page.md"
    out.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    monkeypatch.setattr(sys, "argv", ["report", f"--results={tmp_path}", f"--out={out}"])
    report.main()
    written = out.read_text()
    assert written.startswith("before\n") and written.endswith("\nafter\n") and "old" not in written
    report.main()
    assert out.read_text() == written
    out.write_text("no marks")
    with pytest.raises(SystemExit):
        report.main()
    assert out.read_text() == "no marks"


def test_the_page_holds_what_the_results_of_the_repository_say() -> None:
    root = pathlib.Path(__file__).parents[2]
    page = (root / "docs/performance.md").read_text()
    assert report.replaced(page, report.report(report.read(root / "benchmarks/results/gpu"))) == page


def test_a_commit_that_is_given_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(COMMIT, "abc1234")
    assert commit() == "abc1234"
