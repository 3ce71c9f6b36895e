"""The experiment runs from end to end at reduced size."""

from __future__ import annotations

import json
import pathlib

import pytest
from PIL import Image

from tests.experiments import reduced

SMALL = {"STEPS": "8", "SEEDS": "0", "PER_CLASS": "2", "BUDGETS": "4"}


@pytest.mark.slow
def test_the_script_trains_measures_and_draws(
    data_dir: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reduced.run("ddpm_vs_rf", SMALL, data_dir, tmp_path, monkeypatch)
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert {row["model"] for row in results["by_evaluations"]} == {"rf", "ddpm"}
    assert [row["step"] for row in results["by_training_steps"]] == [2, 4, 6, 8] * 2
    assert all(row["frechet"] > 0 and row["evaluations"] <= 4 for row in results["by_evaluations"])
    # No path is shorter than the distance of its ends.
    assert all(value >= 1 for values in results["length_over_distance"].values() for value in values)
    for name in ("evaluations.png", "training.png", "samples_4.png"):
        with Image.open(tmp_path / "out" / name) as picture:
            assert min(picture.size) > 100
