"""python -m benchmarks.training_speed [--steps=300] [--rounds=15] [--out=FILE]: images a second, cost of loop and log.

The real loop trains the digits of configs/dit_rf.py into a throw-away directory, as often as `rounds`, each time
between two runs of the bare compiled step: the same program on the same data, called back to back with nothing in
between. The share of the loop's wall time outside the compiled step is 1 - bare / loop, bare being the mean of the run
before and the run after it, so that a machine that becomes slower or faster does not count. Compilation is left out.

What the metrics cost is the compiled step with all of them over one that tells its loss alone, dispatches in turn.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import sys
import tempfile
import time
from typing import Any

import jax

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


class Quiet(Diffusion):
    """A task that tells its loss alone, so that nothing else is computed for telling."""

    def step(self, state: TrainState, batch: Any, key: jax.Array) -> tuple[TrainState, Metrics]:
        """One update and its loss."""
        state, metrics = super().step(state, batch, key)
        return state, {"loss": metrics["loss"]}


def cost_of_metrics(config: Any, feed: Feed, pairs: int = 40, steps: int = 20) -> list[float]:
    """Shares of a step's time that are spent on what is told of it, one a pair of dispatches."""
    advances = [Advance(kind(config), feed, config.seed) for kind in (Diffusion, Quiet)]
    states = [jax.jit(lambda: Diffusion(config).init(purpose_key(config.seed, "init")))() for _ in advances]
    seconds = []
    for i in range(pairs + 1):
        took = [0.0, 0.0]
        for j in (0, 1) if i % 2 else (1, 0):  # neither is always the first
            begun = time.perf_counter()
            states[j], rows = advances[j](states[j], feed.chunk(i * steps, steps), steps)
            jax.block_until_ready(rows)
            took[j] = time.perf_counter() - begun
        seconds.append(took)
    return [full / quiet - 1 for full, quiet in seconds[1:]]  # the first pair is compilation


def loop_seconds(task: Diffusion, feed: Feed, config: Any, workdir: pathlib.Path) -> float:
    """Seconds a step of the whole loop between its reports, previews and saves left out."""
    loop.train(task, feed, config, workdir, again="")
    rows = [row["seconds_per_step"] for row in read_metrics(workdir)][1:]
    return statistics.fmean(rows)


def standard_error(values: list[float]) -> float:
    """Of the median of such values, were they normal: a quarter more than that of their mean."""
    return 1.2533 * statistics.stdev(values) / len(values) ** 0.5


def main() -> int:
    """Measure, print, and with --out write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_args()
    config = dit_rf.get_config()
    config.steps = args.steps
    config.log.every_steps = 100
    config.checkpoint.every_steps = config.sample.every_steps = args.steps
    bare, whole = [], []
    with tempfile.TemporaryDirectory() as folder:
        config.data.dir = folder
        jax.config.update("jax_compilation_cache_dir", f"{folder}/xla")  # one program, compiled once for all rounds
        prepare("digits", folder)
        dataset = load(config.data)
        config.data.num_classes = len(dataset.source.class_names)
        task, feed = Diffusion(config), make_feed(dataset, config)
        bare.append(bare_seconds(task, feed, config.seed, args.steps))
        for i in range(args.rounds):
            whole.append(loop_seconds(task, feed, config, pathlib.Path(folder) / f"run{i}"))
            bare.append(bare_seconds(task, feed, config.seed, args.steps))
        telling = cost_of_metrics(config, feed)
    shares = [1 - (a + b) / 2 / w for a, w, b in zip(bare, whole, bare[1:], strict=False)]
    figures = describe() | {
        "images_per_second": config.batch_size / statistics.median(whole),
        "bare_images_per_second": config.batch_size / statistics.median(bare),
        "share_outside_the_step": statistics.median(shares),
        "share_outside_the_step_error": standard_error(shares),
        "shares": shares,
        "share_of_metrics": statistics.median(telling),
        "share_of_metrics_error": standard_error(telling),
        "shares_of_metrics": telling,
    }
    print(json.dumps(figures, indent=2))
    if args.out:
        args.out.write_text(json.dumps(figures, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
