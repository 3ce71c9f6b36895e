"""Commands in the tests' process, without the seconds of a start, and in one of their own, on a tiny DiT."""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import logging
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple
from unittest import mock

import jax
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
import pytest

from archirf_jax.data.pipeline import load
from archirf_jax.errors import UserError
from archirf_jax.launch import flags
from archirf_jax.launch.messages import PACKAGE
from archirf_jax.launch.runs import Run, open_run
from archirf_jax.launch.training import check_step
from archirf_jax.tasks.building import make_task
from archirf_jax.training.step_runner import StepRunner
from archirf_jax.training.writers import rows_without_times

REPOSITORY = pathlib.Path(__file__).parents[1]
# The tests' own flags for a process that has one device.
ONE_DEVICE = os.environ.get("XLA_FLAGS", "").replace("device_count=8", "device_count=1")
CONFIG = f"--config={REPOSITORY / 'configs' / 'dit_rf.py'}"
STEPS = 60
SMALL = (
    f"--config.steps={STEPS}",
    "--config.batch_size=32",
    "--config.model.hidden_size=32",
    "--config.model.depth=1",
    "--config.schedule.warmup_steps=10",
    "--config.log.every_steps=5",
    "--config.log.tensorboard=False",
    "--config.checkpoint.every_steps=20",
    "--config.sample.every_steps=30",
    "--config.sample.steps=2",
    "--config.sample.solver.name=euler",
    "--config.sample.guidance.scale=1.0",
    "--config.sample.per_class=2",
    "--config.steps_per_dispatch=8",
    "--config.mesh.data=1",  # of the devices that the tests' process has
)


class Refusal(NamedTuple):
    """How a command answers wrong arguments: the flag or field that the line is about ("" for none), and the line."""

    flag: str
    line: str


def small(workdir: pathlib.Path, data_dir: pathlib.Path, *extra: str) -> list[str]:
    """The flags of a small training; what `extra` sets wins."""
    return [CONFIG, f"--workdir={workdir}", f"--config.data.dir={data_dir}", *SMALL, *extra]


def call(name: str, *arguments: str) -> Any:
    """Run a command in this process; raises what `Command.run` turns into a line and exit code 2."""
    command = importlib.import_module(f"archirf_jax.{name}")
    with _sharing():
        return command.main(command.COMMAND.parse(arguments))


def opened(workdir: pathlib.Path) -> Run:
    """A run with the compiled programs of the commands in this process."""
    with _sharing():
        return open_run(workdir)


def train(workdir: pathlib.Path, data_dir: pathlib.Path, *extra: str) -> int:
    """A small training in this process, to its end; its exit code."""
    return int(call("main", *small(workdir, data_dir, *extra)))


def refused(name: str, *arguments: str) -> Refusal:
    """How a command answers what it does not take."""
    declared = importlib.import_module(f"archirf_jax.{name}").COMMAND
    with pytest.raises((UserError, OSError)) as caught:
        call(name, *arguments)
    if isinstance(caught.value, OSError):
        return Refusal("", str(caught.value))
    line = declared.render(caught.value)
    assert line and "\n" not in line, line
    own = re.match(r"--\w+", line)
    field = caught.value.field
    return Refusal(flags.name_of(field, declared.flags) if field else own[0] if own else "", line)


@contextlib.contextmanager
def messages() -> Iterator[list[str]]:
    """What the package says to a person meanwhile."""
    said: list[str] = []
    handler, logger = logging.Handler(), logging.getLogger("absl")
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    handler.addFilter(lambda record: record.pathname.startswith(PACKAGE))
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield said
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def run(name: str, *arguments: str, **popen: Any) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own, to its end."""
    return process([sys.executable, "-m", f"archirf_jax.{name}", *arguments], **popen)


def process(command: Sequence[str], **popen: Any) -> subprocess.CompletedProcess[str]:
    """Run a program in the repository's root with its output as text, to its end."""
    options = {"timeout": 300, "env": environment()} | popen
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, **options)


def start(workdir: pathlib.Path, data_dir: pathlib.Path, *extra: str, **env: str) -> subprocess.Popen[str]:
    """Start a small training in a process of its own."""
    command = [sys.executable, "-m", "archirf_jax.main", *small(workdir, data_dir, *extra)]
    pipes: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=REPOSITORY, env=environment(**env), **pipes)


def environment(**more: str) -> dict[str, str]:
    """That of the tests, so that a process computes bit for bit what the tests' own does."""
    return os.environ | more


def wait_for(
    condition: Callable[[], bool], *processes: subprocess.Popen[str], seconds: float = 240, every: float = 0.02
) -> None:
    """Return when the condition holds, asked `every` so many seconds; all processes must live until then."""
    end = time.monotonic() + seconds
    while not condition():
        ended = [process.communicate()[1] for process in processes if process.poll() is not None]
        assert not ended, ended
        assert time.monotonic() < end
        time.sleep(every)


def freeze(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Stop the process while the condition holds."""
    while True:
        wait_for(condition, process, every=0.001)
        process.send_signal(signal.SIGSTOP)
        if condition():
            return
        process.send_signal(signal.SIGCONT)


def rows(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """The rows of metrics so far, without one that is being written."""
    path = workdir / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")] if path.exists() else []


def steps_logged(workdir: pathlib.Path) -> list[int]:
    """The step of every row of metrics."""
    return [row["step"] for row in rows(workdir)]


def steps_saved(workdir: pathlib.Path) -> list[int]:
    """Of the checkpoints that are whole."""
    return sorted(int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdecimal())


def final_arrays(workdir: pathlib.Path, step: int = STEPS) -> dict[str, np.ndarray]:
    """Every array of a checkpoint by its path."""
    items = [path.parent.name for path in (workdir / "checkpoints" / str(step)).glob("*/manifest.ocdbt")]
    with ocp.CheckpointManager(workdir / "checkpoints", item_names=items) as manager:
        args = {name: ocp.args.StandardRestore() for name in items}
        restored = manager.restore(step, args=ocp.args.Composite(**args))
    leaves = jax.tree_util.tree_leaves_with_path(dict(restored.items()))
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def assert_same_run(first: pathlib.Path, second: pathlib.Path, step: int = STEPS) -> None:
    """Final parameters, averages and optimizer state are equal byte for byte, and so is every row of metrics."""
    ours, theirs = final_arrays(first, step), final_arrays(second, step)
    assert ours.keys() == theirs.keys() and len(ours) > 40
    for name, array in ours.items():
        assert array.tobytes() == theirs[name].tobytes(), name
    assert rows_without_times(first) == rows_without_times(second)


@contextlib.contextmanager
def _sharing() -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for place, stand_in in STAND_INS.items():
            stack.enter_context(mock.patch(place, stand_in))
        yield


def _task(config: Any, runs: Any = None, model: Any = None) -> Any:
    """One task for each configuration and its frozen runs, wherever these lie: one compiled program a way to sample."""
    if model:
        return make_task(config, runs, model)
    key = json.dumps(
        [_deciding(config), {name: (run.digest(), _deciding(run.config)) for name, run in (runs or {}).items()}]
    )
    if key not in _tasks:
        copy = json.loads(json.dumps(config.to_dict()))  # which nobody changes any more
        _tasks[key] = make_task(ml_collections.ConfigDict(copy).lock(), runs)
    return _tasks[key]


def _deciding(config: Any) -> dict[str, Any]:
    indifferent = ("checkpoint", "log", "identity", "posthoc", "frozen")
    return {name: group for name, group in config.to_dict().items() if name not in indifferent}


_tasks: dict[str, Any] = {}


def _runner(task: Any, feed: Any, seed: int, frozen: Any, mesh: Any) -> StepRunner:
    """One that has the programs of runs of the same task before it."""
    runner = StepRunner(task, feed, seed, frozen, mesh)
    runner._compiled = _programs(task, seed)
    return runner


@functools.cache
def _programs(task: Any, seed: int) -> dict[Any, Any]:
    return {}


def _load(data: Any) -> Any:
    """The digits are decoded once; other sets may have changed."""
    return _digits(json.dumps(data.to_dict())) if data.name == "digits" else load(data)


@functools.cache
def _digits(data: str) -> Any:
    return load(ml_collections.ConfigDict(json.loads(data)))


def _check_step(task: Any, config: Any) -> frozenset[str]:
    if task not in _checked:
        _checked[task] = check_step(task, config)
    return _checked[task]


_checked: dict[Any, frozenset[str]] = {}
# What commands in this process make once for many calls.
STAND_INS: dict[str, Any] = {
    "archirf_jax.data.pipeline.load": _load,
    "archirf_jax.launch.evaluation.load": _load,
    "archirf_jax.launch.sheet_rows.load": _load,
    "archirf_jax.launch.runs.make_task": _task,
    "archirf_jax.launch.training.make_task": _task,
    "archirf_jax.launch.training.check_step": _check_step,
    "archirf_jax.training.upkeep.StepRunner": _runner,
}
