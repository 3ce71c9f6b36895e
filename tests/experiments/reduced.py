"""Experiments in the tests' process, with a network that compiles at once, and once for all runs that have it."""

from __future__ import annotations

import pathlib
import runpy
from typing import Any

import jax
import pytest

from archirf_jax.launch.defaults import DEFAULTS
from archirf_jax.models import dit
from configs import default
from tests.running import STAND_INS

TINY = dict(hidden_size=16, depth=1, num_heads=2, patch_size=2)


def run(
    name: str, settings: dict[str, str], data_dir: pathlib.Path, folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run a script of `experiments` whose runs and results lie in folder/runs and folder/out."""
    shrink(monkeypatch)
    places = {"DATA": str(data_dir), "RUNS": str(folder / "runs"), "OUT": str(folder / "out")}
    for variable, value in (settings | places).items():
        monkeypatch.setenv(variable, value)
    runpy.run_module(f"experiments.{name}.{name}", run_name="__main__")


def shrink(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the network of the digits a small one, on one device; runs of one configuration share its programs."""
    whole = default.get_config

    def small(*variant: str) -> Any:
        config = whole(*variant)
        config.mesh.data = 1
        config.log.tensorboard = False
        return config

    monkeypatch.setitem(dit.PRESETS, "tiny/2", TINY)
    monkeypatch.setattr(default, "get_config", small)
    monkeypatch.setitem(DEFAULTS["mesh"], "data", 1)
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
    for place, stand_in in STAND_INS.items():
        monkeypatch.setattr(place, stand_in)
