"""`python -m archirf_jax` lists all there is, without importing it."""

from __future__ import annotations

import pathlib
import subprocess
import sys

from archirf_jax import models, processes, registry
from archirf_jax.samplers import solvers
from tests import running

COMMAND = [sys.executable, "-X", "importtime", "-m", "archirf_jax"]


def test_everything_has_a_line_and_jax_is_not_imported() -> None:
    done = running.process(COMMAND)
    assert done.returncode == 0, done.stderr
    names = {line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ")}
    assert {name for room in (models, processes, solvers) for name in registry.names(room)} <= names
    assert {"main", "sample", "evaluate", "digits", "openmoji", "diffusion"} <= names
    configs = {path.stem for path in (running.REPOSITORY / "configs").glob("*_*.py")} - {"__init__"}
    assert configs and configs <= names
    assert max(map(len, done.stdout.splitlines())) <= 120
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert not imported & {"jax", "flax", "ml_collections"}


def test_there_may_be_no_configurations(tmp_path: pathlib.Path) -> None:
    environment = running.environment(PYTHONPATH=str(running.REPOSITORY))
    done = subprocess.run(COMMAND, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "dit_rf" not in done.stdout
