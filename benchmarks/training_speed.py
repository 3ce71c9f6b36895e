"""python -m benchmarks.training_speed [--steps=300] [--rounds=12] [--out=FILE]: images a second, cost of loop and log.

The real loop trains the digits of configs/dit_rf.py into a throw-away directory, as often as `rounds`, each time
between two runs of the bare compiled step: the same program on the same data, called back to back with nothing in
between. Compilation, sample grids and checkpoints are left out of both. What the loop costs is told in two ways:

    share_by_the_clock   1 - bare / loop, bare being the mean of the run before and the run after it. On a machine whose
                         speed changes by more than the loop costs, this says little: see its error.
    share_of_the_host    time in which the device had nothing to do between two dispatches, and the CPU time of the
                         loop's own thread, over the time of the loop. Each is measured by itself and does not depend on
                         how fast the step is at the moment; the thread's time counts in full, though it competes with
                         the step on a CPU alone.

What the metrics cost is the compiled step with all of them against one that tells its loss alone, in short dispatches
in turn: of their times, the tenth part that were disturbed least.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import sys
import tempfile
import threading
import time
from typing import Any
from unittest import mock

import jax
import numpy as np

from archirf_jax.data.pipeline import load, make_feed
from archirf_jax.data.preparation import prepare
from archirf_jax.tasks.diffusion import Diffusion
from archirf_jax.training import loop
from archirf_jax.training.advance import Advance, Feed
from archirf_jax.training.state import TrainState, purpose_key
from archirf_jax.training.update import Metrics
from archirf_jax.training.writers import read_metrics
from benchmarks.machine import describe
from configs import dit_rf

LEAST_DISTURBED = 0.1


class Watched(Advance):
    """Notes when the host asked for a dispatch, how long the device had nothing to do, and the thread's CPU time."""

    def __init__(self, *arguments: Any) -> None:
        """As `Advance`."""
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
    """A task that tells its loss alone, so that nothing else is computed for telling."""

    def step(self, state: TrainState, batch: Any, key: jax.Array) -> tuple[TrainState, Metrics]:
        """One update and its loss."""
        state, metrics = super().step(state, batch, key)
        return state, {"loss": metrics["loss"]}


def bare_seconds(task: Diffusion, feed: Feed, seed: int, steps: int) -> float:
    """Seconds a step of the compiled program alone."""
    advance = Advance(task, feed, seed)
    state, _ = advance(jax.jit(lambda: task.init(purpose_key(seed, "init")))(), feed.chunk(0, 1), 1)
    state, rows = advance(state, feed.chunk(1, 1), 1)
    jax.block_until_ready(rows)
    begun, done = time.perf_counter(), 0
    while done < steps:
        state, rows = advance(state, feed.chunk(done, feed.dispatch), feed.dispatch)
        done += feed.dispatch
    jax.block_until_ready(rows)
    return (time.perf_counter() - begun) / done


def loop_seconds(task: Diffusion, feed: Feed, config: Any, workdir: pathlib.Path) -> tuple[float, float, float]:
    """(seconds a step of the whole loop between its reports, the two shares of `Watched`)."""
    made: list[Watched] = []

    def watched(*arguments: Any) -> Watched:
        made.append(Watched(*arguments))
        return made[-1]

    with mock.patch.object(loop, "Advance", watched):
        loop.train(task, feed, config, workdir, again="")
    rows = [row["seconds_per_step"] for row in read_metrics(workdir)][1:]
    return statistics.fmean(rows), *made[0].shares()


def cost_of_metrics(config: Any, feed: Feed, pairs: int = 600, steps: int = 3) -> dict[str, float]:
    """Shares of a step that are spent on what is told of it, by the clock and by CPU time."""
    advances = [Advance(kind(config), feed, config.seed) for kind in (Diffusion, Quiet)]
    states = [jax.jit(lambda: Diffusion(config).init(purpose_key(config.seed, "init")))() for _ in advances]
    clock, cpu = np.zeros((2, pairs + 3)), np.zeros((2, pairs + 3))
    for i in range(pairs + 3):
        for j in (0, 1) if i % 2 else (1, 0):  # neither is always the first
            clock[j, i], cpu[j, i] = -time.perf_counter(), -time.process_time()
            states[j], rows = advances[j](states[j], feed.chunk(i * steps, steps), steps)
            jax.block_until_ready(rows)
            clock[j, i] += time.perf_counter()
            cpu[j, i] += time.process_time()
    told: dict[str, float] = {}
    for name, times in (("clock", clock[:, 3:]), ("cpu_time", cpu[:, 3:])):  # the first ones compile
        told[f"share_of_metrics_by_{name}"] = _share(times)
        chance = np.random.default_rng(0)
        again = [_share(times[:, chance.integers(0, pairs, pairs)]) for _ in range(200)]
        told[f"share_of_metrics_by_{name}_error"] = float(np.std(again))
    return told


def _share(times: np.ndarray) -> float:
    full, quiet = np.quantile(times, LEAST_DISTURBED, axis=1)
    return float(full / quiet - 1)


def standard_error(values: list[float]) -> float:
    """Of the median of such values, were they normal: a quarter more than that of their mean."""
    return 1.2533 * statistics.stdev(values) / len(values) ** 0.5


def main() -> int:
    """Measure, print, and with --out write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_args()
    config = dit_rf.get_config()
    config.steps = args.steps
    config.log.every_steps = 100
    config.checkpoint.every_steps = config.sample.every_steps = args.steps
    with tempfile.TemporaryDirectory() as folder:
        config.data.dir = folder
        jax.config.update("jax_compilation_cache_dir", f"{folder}/xla")  # one program, compiled once for all rounds
        prepare("digits", folder)
        dataset = load(config.data)
        config.data.num_classes = len(dataset.source.class_names)
        task, feed = Diffusion(config), make_feed(dataset, config)
        bare, whole = [bare_seconds(task, feed, config.seed, args.steps)], []
        for i in range(args.rounds):
            whole.append(loop_seconds(task, feed, config, pathlib.Path(folder) / f"run{i}"))
            bare.append(bare_seconds(task, feed, config.seed, args.steps))
        telling = cost_of_metrics(config, feed)
    seconds, idle, cpu = (list(column) for column in zip(*whole, strict=True))
    shares = [1 - (a + b) / 2 / w for a, w, b in zip(bare, seconds, bare[1:], strict=False)]
    figures = describe() | {
        "images_per_second": config.batch_size / statistics.median(seconds),
        "bare_images_per_second": config.batch_size / statistics.median(bare),
        "share_by_the_clock": statistics.median(shares),
        "share_by_the_clock_error": standard_error(shares),
        "share_of_the_host": statistics.median(a + b for a, b in zip(idle, cpu, strict=True)),
        "share_device_idle": statistics.median(idle),
        "share_host_cpu": statistics.median(cpu),
        **telling,
        "shares_by_the_clock": shares,
        "shares_of_the_host": [a + b for a, b in zip(idle, cpu, strict=True)],
    }
    print(json.dumps(figures, indent=2))
    if args.out:
        args.out.write_text(json.dumps(figures, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
