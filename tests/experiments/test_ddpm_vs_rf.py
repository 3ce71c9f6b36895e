"""The experiment runs from end to end at reduced size."""

from __future__ import annotations

import json
import pathlib

import pytest
from PIL import Image

from tests.experiments import reduced

# Pictures have six images of a class and stages 50 evaluations: all are drawn by the programs of the one budget.
# The flow is trained as that of `test_dit_designs`, whose programs it has if that was in the same process.
SMALL = {"STEPS": "8", "SEEDS": "0", "PER_CLASS": "6", "BUDGETS": "50", "SOLVERS": "1"}


@pytest.mark.slow
def test_the_script_trains_measures_and_draws(
    data_dir: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reduced.run("ddpm_vs_rf", SMALL, data_dir, tmp_path, monkeypatch)
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert {row["model"] for row in results["by_evaluations"]} == {"rf", "ddpm"}
    assert [row["step"] for row in results["by_training_steps"]] == [2, 4, 6, 8] * 2
    assert all(row["frechet"] > 0 and row["evaluations"] <= 50 for row in results["by_evaluations"])
    # No path is shorter than the distance of its ends.
    assert all(value >= 1 for values in results["length_over_distance"].values() for value in values)
    for name in ("evaluations.png", "training.png", "samples_50.png"):
        with Image.open(tmp_path / "out" / name) as picture:
            assert min(picture.size) > 100
