"""Experiments in the tests' process, with a network that compiles at once."""

from __future__ import annotations

import pathlib
import runpy

import pytest

from archirf_jax.models import dit

TINY = dict(hidden_size=32, depth=1, num_heads=2, patch_size=2)


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
    """Make the network of the digits a small one."""
    monkeypatch.setitem(dit.PRESETS, "tiny/2", TINY)
