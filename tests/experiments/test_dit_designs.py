"""Two of the four designs run from end to end at reduced size."""

from __future__ import annotations

import json
import pathlib

import pytest
from PIL import Image

from tests.experiments import reduced

DESIGNS = ["cross_attention", "adaln_zero"]
SMALL = {"STEPS": "8", "SEEDS": "0", "PER_CLASS": "4", "DESIGNS": ",".join(DESIGNS)}


@pytest.mark.slow
def test_the_script_trains_measures_and_draws(
    data_dir: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reduced.run("dit_designs", SMALL, data_dir, tmp_path, monkeypatch)
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert [(row["design"], row["step"]) for row in results["by_step"]] == [
        (design, step) for design in DESIGNS for step in (1, 2, 4, 8)
    ]
    assert all(row["frechet"] > 0 and 0 <= row["accuracy"] <= 1 for row in results["by_step"])
    published = {"cross_attention": 137.6, "adaln_zero": 118.6}
    for design, gflops in published.items():  # Peebles & Xie 2022, section 5
        assert results["costs"][design]["xl2_gflops"] == pytest.approx(gflops, rel=0.005)
    assert sorted(results["costs"]) == sorted(results["final_loss"]) == sorted(DESIGNS)
    for name in ("designs.png", "loss.png", "samples.png"):
        with Image.open(tmp_path / "out" / name) as picture:
            assert min(picture.size) > 100
