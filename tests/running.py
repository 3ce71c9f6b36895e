"""Commands run as a person runs them, on a DiT small enough for a test."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from archirf_jax.training.writers import rows_without_times

REPOSITORY = pathlib.Path(__file__).parents[1]
STEPS = 60
SMALL = (
    f"--config.steps={STEPS}",
    "--config.batch_size=32",
    "--config.model.hidden_size=32",
    "--config.model.depth=2",
    "--config.schedule.warmup_steps=10",
    "--config.log.every_steps=5",
    "--config.checkpoint.every_steps=20",
    "--config.sample.every_steps=30",
    "--config.sample.steps=4",
    "--config.sample.per_class=2",
    "--config.steps_per_dispatch=8",
)


def arguments(workdir: pathlib.Path, data_dir: pathlib.Path, extra: Sequence[str] = ()) -> list[str]:
    """The command line of a small training; what `extra` sets wins."""
    start = [sys.executable, "-m", "archirf_jax.main", "--config=configs/dit_rf.py", f"--workdir={workdir}"]
    return [*start, f"--config.data.dir={data_dir}", *SMALL, *extra]


def main(workdir: pathlib.Path, data_dir: pathlib.Path, *extra: str, **popen: Any) -> subprocess.CompletedProcess[str]:
    """Run a small training to its end."""
    return run(arguments(workdir, data_dir, extra), **popen)


def sample(workdir: pathlib.Path, *extra: str) -> subprocess.CompletedProcess[str]:
    """Run the sample command."""
    return run([sys.executable, "-m", "archirf_jax.sample", f"--workdir={workdir}", *extra])


def run(command: Sequence[str], **popen: Any) -> subprocess.CompletedProcess[str]:
    """Run a command in the repository's root with its output as text."""
    options = {"timeout": 300, "env": environment()} | popen
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, **options)


def environment(**more: str) -> dict[str, str]:
    """A person's: compiled as well as it can be, unlike the tests themselves."""
    return {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | more


def final_arrays(workdir: pathlib.Path, step: int = STEPS) -> dict[str, np.ndarray]:
    """Every array of a checkpoint by its path."""
    with ocp.CheckpointManager(workdir / "checkpoints", item_names=("params", "ema", "opt")) as manager:
        items = {name: ocp.args.StandardRestore() for name in ("params", "ema", "opt")}
        restored = manager.restore(step, args=ocp.args.Composite(**items))
    leaves = jax.tree_util.tree_leaves_with_path(dict(restored.items()))
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def assert_same_run(first: pathlib.Path, second: pathlib.Path) -> None:
    """Final parameters, averages and optimizer state are equal byte for byte, and so is every row of metrics."""
    ours, theirs = final_arrays(first), final_arrays(second)
    assert ours.keys() == theirs.keys() and len(ours) > 40
    for name, array in ours.items():
        assert array.tobytes() == theirs[name].tobytes(), name
    assert rows_without_times(first) == rows_without_times(second)
