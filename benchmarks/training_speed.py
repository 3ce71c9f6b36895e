"""python -m benchmarks.training_speed [--steps=300] [--rounds=12] [--out=FILE]: images a second, cost of loop and log.

The real loop trains the digits of configs/dit_rf.py into a throw-away directory, as often as `rounds`, each time
between two runs of the bare compiled step: the same program on the same data, called back to back with nothing in
between. Compilation, sample grids and checkpoints are left out of both. There are two measures of what the loop costs:

    share_by_the_clock   1 - bare / loop, bare being the mean of the run before and the run after it. On a machine whose
                         speed changes by more than the loop costs, this says little: see its error.
    share_of_the_host    time in which the device had nothing to do between two dispatches, and the CPU time of the
                         loop's own thread, over the time of the loop. Each is measured by itself and does not depend on
                         how fast the step is at the moment; the thread's time counts in full, though it competes with
                         the step on a CPU alone.

What the metrics cost is the compiled step with all of them against one that reports its loss alone, in short dispatches
in turn: of their times, the tenth part that were disturbed least.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import tempfile
import threading
import time
from typing import Any
from unittest import mock

import jax
import numpy as np

from archirf_jax.contracts import Batch, Feed, Frozen, Metrics, TrainState
from archirf_jax.data.feeds import make_feed
from archirf_jax.data.pipeline import load
from archirf_jax.data.preparation import prepare
from archirf_jax.launch import host
from archirf_jax.tasks.building import resolve
from archirf_jax.tasks.diffusion import Diffusion
from archirf_jax.training import loop, upkeep
from archirf_jax.training.state import purpose_key
from archirf_jax.training.step_runner import StepRunner
from archirf_jax.training.writers import read_metrics
from benchmarks.machine import say, write
from configs import dit_rf

LEAST_DISTURBED = 0.1


class Watched(StepRunner):
    """Notes when the host asked for a dispatch, how long the device had nothing to do, and the thread's CPU time."""

    def __init__(self, *arguments: Any) -> None:
        """As `StepRunner`."""
        super().__init__(*arguments)
        self.asked: list[tuple[float, float, float]] = []
        self._waiting: threading.Thread | None = None
        self._done = 0.0

    def __call__(self, state: TrainState, chunk: Any, n: int) -> tuple[TrainState, Metrics]:
        """As the loop calls it."""
        now, idle = time.perf_counter(), 0.0
        if self._waiting and not self._waiting.is_alive():
            idle = now - self._done
        self.asked.append((now, time.thread_time(), idle))
        state, rows = super().__call__(state, chunk, n)
        self._waiting = threading.Thread(target=self._wait, args=(rows["loss"],), daemon=True)
        self._waiting.start()
        return state, rows

    def _wait(self, value: jax.Array) -> None:
        jax.block_until_ready(value)
        self._done = time.perf_counter()

    def shares(self) -> tuple[float, float]:
        """(time without work for the device, CPU time of the thread) over all time, without the first dispatches."""
        begun, cpu, idle = (np.asarray(column) for column in zip(*self.asked[2:], strict=True))
        whole = begun[-1] - begun[0]
        return float(np.sum(idle[1:]) / whole), float((cpu[-1] - cpu[0]) / whole)


class Quiet(Diffusion):
    """A task that reports its loss alone, so that nothing else is computed for reports."""

    def step(self, state: TrainState, frozen: Frozen, batch: Batch, key: jax.Array) -> tuple[TrainState, Metrics]:
        """One update and its loss."""
        state, metrics = super().step(state, frozen, batch, key)
        return state, {"loss": metrics["loss"]}


def started(task: Any, seed: int) -> TrainState:
    """The state before the first step."""
    return jax.jit(lambda: task.init(purpose_key(seed, "init"), {}))()


def bare_seconds(task: Any, feed: Feed, seed: int, steps: int) -> float:
    """Seconds a step of the compiled program alone."""
    runner, state = StepRunner(task, feed, seed), started(task, seed)
    for step in (0, 1):
        state, rows = runner(state, *feed.chunk(step, 1))
    jax.block_until_ready(rows)
    begun, done = time.perf_counter(), 0
    while done < steps:
        chunk, n = feed.chunk(done, feed.dispatch)
        state, rows = runner(state, chunk, n)
        done += n
    jax.block_until_ready(rows)
    return (time.perf_counter() - begun) / done


def loop_seconds(task: Any, feed: Feed, config: Any, workdir: pathlib.Path) -> tuple[float, float, float]:
    """(seconds a step of the whole loop between its reports, the two shares of `Watched`)."""
    made: list[Watched] = []

    def watched(*arguments: Any) -> Watched:
        made.append(Watched(*arguments))
        return made[-1]

    with mock.patch.object(upkeep, "StepRunner", watched):
        loop.train(task, feed, config, workdir, again="")
    rows = [row["seconds_per_step"] for row in read_metrics(workdir)][1:]
    return statistics.fmean(rows), *made[0].shares()


def cost_of_metrics(config: Any, feed: Feed, pairs: int = 600, steps: int = 3) -> dict[str, float]:
    """Shares of a step that are spent on what is reported of it, by the clock and by CPU time."""
    tasks: list[Any] = [kind(config, {}) for kind in (Diffusion, Quiet)]
    runners = [StepRunner(task, feed, config.seed) for task in tasks]
    states = [started(task, config.seed) for task in tasks]
    clock, cpu = np.zeros((2, pairs + 3)), np.zeros((2, pairs + 3))
    for i in range(pairs + 3):
        for j in (0, 1) if i % 2 else (1, 0):  # neither is always the first
            clock[j, i], cpu[j, i] = -time.perf_counter(), -time.process_time()
            states[j], rows = runners[j](states[j], feed.chunk(i * steps, steps)[0], steps)
            jax.block_until_ready(rows)
            clock[j, i] += time.perf_counter()
            cpu[j, i] += time.process_time()
    found: dict[str, float] = {}
    for name, times in (("clock", clock[:, 3:]), ("cpu_time", cpu[:, 3:])):  # the first ones compile
        found[f"share_of_metrics_by_{name}"] = _share(times)
        random = np.random.default_rng(0)
        again = [_share(times[:, random.integers(0, pairs, pairs)]) for _ in range(200)]
        found[f"share_of_metrics_by_{name}_error"] = float(np.std(again))
    return found


def _share(times: np.ndarray) -> float:
    full, quiet = np.quantile(times, LEAST_DISTURBED, axis=1)
    return float(full / quiet - 1)


def standard_error(values: list[float]) -> float:
    """The standard error of the median of normal values: a quarter more than that of their mean."""
    return 1.2533 * statistics.stdev(values) / len(values) ** 0.5


def figures(steps: int, rounds: int, folder: pathlib.Path) -> dict[str, Any]:
    """All of them, with data and runs in `folder`."""
    config = dit_rf.get_config()
    config.steps, config.log.every_steps, config.data.dir = steps, min(100, steps // 3), str(folder)
    config.checkpoint.every_steps = config.sample.every_steps = steps
    jax.config.update("jax_compilation_cache_dir", f"{folder}/xla")  # one program, compiled once for all rounds
    prepare("digits", str(folder))
    dataset = load(config.data)
    resolve(config, len(dataset.class_names))
    task, feed = Diffusion(config, {}), make_feed(dataset, config)
    bare, whole = [bare_seconds(task, feed, config.seed, steps)], []
    for i in range(rounds):
        whole.append(loop_seconds(task, feed, config, folder / f"run{i}"))
        bare.append(bare_seconds(task, feed, config.seed, steps))
    seconds, idle, cpu = (list(column) for column in zip(*whole, strict=True))
    shares = [1 - (a + b) / 2 / w for a, w, b in zip(bare, seconds, bare[1:], strict=False)]
    of_host = [a + b for a, b in zip(idle, cpu, strict=True)]
    return {
        "images_per_second": config.batch_size / statistics.median(seconds),
        "bare_images_per_second": config.batch_size / statistics.median(bare),
        "share_by_the_clock": statistics.median(shares),
        "share_by_the_clock_error": standard_error(shares),
        "share_of_the_host": statistics.median(of_host),
        "share_device_idle": statistics.median(idle),
        "share_host_cpu": statistics.median(cpu),
        **cost_of_metrics(config, feed),
        "shares_by_the_clock": shares,
        "shares_of_the_host": of_host,
    }


def main() -> None:
    """Measure, say, and with --out write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_args()
    host.set_up()  # as the commands do
    with tempfile.TemporaryDirectory() as folder:
        found = figures(args.steps, args.rounds, pathlib.Path(folder))
    say(json.dumps(found, indent=2))
    write(found, args.out)


if __name__ == "__main__":
    main()
