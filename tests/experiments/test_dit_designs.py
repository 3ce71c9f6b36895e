"""The four designs run from end to end at reduced size, and the README says what was measured."""

from __future__ import annotations

import json
import pathlib
import re
import sys

import pytest
from PIL import Image

from tests import running

FOLDER = running.REPOSITORY / "experiments/dit_designs"
DESIGNS = ["in_context", "cross_attention", "adaln", "adaln_zero"]
SMALL = {"STEPS": "8", "SEEDS": "0", "PER_CLASS": "2"}


@pytest.mark.slow
def test_the_script_trains_measures_and_draws(data_dir: pathlib.Path, tmp_path: pathlib.Path) -> None:
    places = {"DATA": str(data_dir), "RUNS": str(tmp_path / "runs"), "OUT": str(tmp_path / "out")}
    command = [sys.executable, "-m", "experiments.dit_designs.dit_designs"]
    done = running.run(command, env=running.environment(**SMALL, **places), timeout=900)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert [(row["design"], row["step"]) for row in results["by_step"]] == [
        (design, step) for design in DESIGNS for step in (1, 2, 4, 8)
    ]
    assert all(row["frechet"] > 0 and 0 <= row["accuracy"] <= 1 for row in results["by_step"])
    assert sorted(results["costs"]) == sorted(results["final_loss"]) == sorted(DESIGNS)
    for name in ("designs.png", "loss.png", "samples.png"):
        with Image.open(tmp_path / "out" / name) as picture:
            assert min(picture.size) > 100


def test_the_script_is_a_notebook_in_percent_format() -> None:
    text = (FOLDER / "dit_designs.py").read_text()
    assert "format_name: percent" in text and len(re.findall(r"^# %% \[markdown\]$", text, re.M)) >= 5
    assert len(re.findall(r"^# %%$", text, re.M)) >= 5


def test_costs_of_the_largest_network_are_those_of_the_paper() -> None:
    costs = json.loads((FOLDER / "results.json").read_text())["costs"]
    published = {"in_context": 119.4, "cross_attention": 137.6, "adaln": 118.6, "adaln_zero": 118.6}
    for design, gflops in published.items():  # Peebles & Xie 2022, section 5
        assert costs[design]["xl2_gflops"] == pytest.approx(gflops, rel=0.005)


def test_the_readme_shows_pictures_that_are_there_and_the_numbers_of_the_results() -> None:
    readme, results = (FOLDER / "README.md").read_text(), json.loads((FOLDER / "results.json").read_text())
    pictures = re.findall(r"\]\(([\w.]+\.png)\)", readme)
    assert pictures and all((FOLDER / name).exists() for name in pictures)
    for design in DESIGNS:
        last = [row for row in results["by_step"] if (row["design"], row["step"]) == (design, results["steps"])]
        line = next(line for line in readme.splitlines() if line.startswith(f"| `{design}`"))
        for row in last:
            assert f"{row['frechet']:.2f}" in line and f"{row['accuracy']:.2f}" in line
        assert (
            f"{results['final_loss'][design]:.3f}" in line and f"{results['costs'][design]['xl2_gflops']:.1f}" in line
        )
