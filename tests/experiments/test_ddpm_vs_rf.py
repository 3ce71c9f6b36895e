"""The experiment runs from end to end at reduced size as a script, and its README says what was measured."""

from __future__ import annotations

import json
import pathlib
import re
import sys

import pytest
from PIL import Image

from tests import running

FOLDER = running.REPOSITORY / "experiments/ddpm_vs_rf"
SMALL = {"STEPS": "8", "SEEDS": "0", "PER_CLASS": "2", "BUDGETS": "4"}


@pytest.mark.slow
def test_the_script_trains_measures_and_draws(data_dir: pathlib.Path, tmp_path: pathlib.Path) -> None:
    places = {"DATA": str(data_dir), "RUNS": str(tmp_path / "runs"), "OUT": str(tmp_path / "out")}
    command = [sys.executable, "-m", "experiments.ddpm_vs_rf.ddpm_vs_rf"]
    done = running.run(command, env=running.environment(**SMALL, **places), timeout=600)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert {row["model"] for row in results["by_evaluations"]} == {"rf", "ddpm"}
    assert [row["step"] for row in results["by_training_steps"]] == [2, 4, 6, 8] * 2
    assert all(row["frechet"] > 0 and row["evaluations"] <= 4 for row in results["by_evaluations"])
    assert all(value >= 1 for values in results["length_over_distance"].values() for value in values)
    for name in ("evaluations.png", "training.png", "samples_4.png"):
        with Image.open(tmp_path / "out" / name) as picture:
            assert min(picture.size) > 100


def test_the_script_is_a_notebook_in_percent_format() -> None:
    text = (FOLDER / "ddpm_vs_rf.py").read_text()
    assert "format_name: percent" in text and len(re.findall(r"^# %% \[markdown\]$", text, re.M)) >= 5
    assert len(re.findall(r"^# %%$", text, re.M)) >= 5


def test_the_readme_shows_pictures_that_are_there_and_the_numbers_of_the_results() -> None:
    readme, results = (FOLDER / "README.md").read_text(), json.loads((FOLDER / "results.json").read_text())
    pictures = re.findall(r"\]\(([\w.]+\.png)\)", readme)
    assert pictures and all((FOLDER / name).exists() for name in pictures)
    rows = [row for row in results["by_evaluations"] if row["evaluations"] == 20]
    for model, solver in (("rf", "euler"), ("ddpm", "ddim")):
        values = [row["frechet"] for row in rows if (row["model"], row["solver"]) == (model, solver)]
        assert f"{sum(values) / len(values):.2f}" in readme
