"""The notebook runs from its first cell to its last, at a reduced number of steps."""

from __future__ import annotations

import pathlib
import runpy

import numpy as np
import pytest

from tests.experiments import reduced

REPOSITORY = pathlib.Path(__file__).parents[2]


@pytest.mark.slow
def test_the_notebook_runs(data_dir: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reduced.shrink(monkeypatch)
    settings = {"STEPS": 4, "WORKDIR": str(tmp_path / "run"), "DATA_DIR": str(data_dir), "IMAGES": 64}
    found = runpy.run_path(str(REPOSITORY / "experiments" / "quickstart" / "quickstart.py"), init_globals=settings)
    assert found["images"].shape == (80, 8, 8, 1) and found["images"].dtype == np.uint8
    assert np.isfinite(found["figures"]["frechet"]) and np.isfinite(float(found["value"]))
    assert (tmp_path / "run" / "config.json").exists()
