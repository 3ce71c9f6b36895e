"""Exponents are those of powers, and the script counts and times at reduced size."""

from __future__ import annotations

import json
import pathlib
import sys

import numpy as np
import pytest

from benchmarks import scaling
from benchmarks.scaling import exponent, meshes


def test_an_exponent_is_that_of_a_power_and_its_error_that_of_the_noise() -> None:
    x = np.geomspace(1, 64, 7)
    exact = exponent(x, 3 * x**1.5)
    assert exact["exponent"] == pytest.approx(1.5) and exact["error"] == pytest.approx(0, abs=1e-9)
    random, noise = np.random.default_rng(0), 0.1
    found = [exponent(x, x * np.exp(noise * random.normal(size=7))) for _ in range(400)]
    spread = np.std([each["exponent"] for each in found])
    assert spread == pytest.approx(noise / np.sqrt(np.sum((np.log(x) - np.log(x).mean()) ** 2)), rel=0.1)
    assert np.mean([each["error"] ** 2 for each in found]) == pytest.approx(spread**2, rel=0.15)


def test_meshes_of_many_devices() -> None:
    assert meshes(1) == [(1, 1)] and meshes(8) == [(1, 8), (8, 1)] and meshes(64) == [(1, 64), (8, 8), (64, 1)]


@pytest.mark.slow
def test_devices_are_simulated_and_a_device_is_timed(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "found.json"
    monkeypatch.setattr(sys, "argv", ["scaling", "--toy", "--devices=8", "--rounds=1", f"--out={out}"])
    scaling.main()
    found = json.loads(out.read_text())
    rows = {(row["data"], row["fsdp"]): row for row in found["compiled"]}
    whole, cut = rows[8, 1], rows[1, 8]
    assert whole["by_kind"]["all-reduce"]["result"] >= 2 * whole["parameters"]  # float16
    assert cut["by_kind"]["all-gather"]["operations"] > 0 and cut["state_bytes"] < 0.5 * whole["state_bytes"]
    timed = found["timed"]["tokens"]
    assert min(timed["seconds"]) > 0 and 0.3 < timed["memory"]["exponent"] < 3
