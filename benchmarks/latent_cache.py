"""python -m benchmarks.latent_cache [--variant=openmoji] [--rounds=5] [--out=FILE]: what a latent cache saves.

Seconds of a training step of configs/dit_latent_rf.py from its latent cache and of the same step that encodes its
images, both with their feeds and in turns. --autoencoder and --latents name the run and the cache, which are made
before (see the configuration); without them the configuration's own are taken.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import time
from typing import Any

import jax

from archirf_jax import sharding
from archirf_jax.data.feeds import make_feed
from archirf_jax.data.pipeline import load
from archirf_jax.launch import latents
from archirf_jax.launch import runs as frozen_runs
from archirf_jax.tasks.building import make_task, resolve
from archirf_jax.training.state import purpose_key
from archirf_jax.training.step_runner import StepRunner
from benchmarks.machine import say, write
from configs import dit_latent_rf


class Timed:
    """A training whose steps can be timed; nothing is written.

    Args:
        config: of a run that is trained on a latent cache.
        cached: whether the latents are read; otherwise they are made of the images at each step.
        init: compiled, of the other kind of step, which begins with the same state.

    Attributes:
        init: the compiled (key, frozen) -> state.
    """

    def __init__(self, config: Any, cached: bool, init: Any = None) -> None:
        """Compile the steps."""
        config = config.copy_and_resolve_references().unlock()
        config.mesh.data = 1  # one device
        runs = frozen_runs.named(config, pathlib.Path("nowhere"))
        latents.fit(config, runs)  # the cache's statistics, which both kinds of step take
        if not cached:
            config.data = latents.images_of(config.data)
        dataset = load(config.data)
        resolve(config, dataset.num_classes or 1)
        frozen = {name: run.params for name, run in runs.items()}
        task = make_task(config, runs)
        self._feed = make_feed(dataset, config)
        mesh = sharding.from_config(config)
        self._runner = StepRunner(task, self._feed, config.seed, frozen, mesh)
        self.init = init or jax.jit(task.init)
        state = self.init(purpose_key(config.seed, "init"), frozen)
        self._state = jax.device_put(state, sharding.place(state, mesh))  # where a step leaves it: one program
        self._done = 0
        self.seconds(1)

    def seconds(self, steps: int) -> float:
        """Seconds a step of the next steps, with what their data takes."""
        begun, last = time.perf_counter(), self._done + steps
        while self._done < last:
            chunk, n = self._feed.chunk(self._done, min(self._feed.dispatch, last - self._done))
            self._runner.compile(self._state, chunk)
            self._state, rows = self._runner(self._state, chunk, n)
            self._done += n
        jax.block_until_ready(rows)
        return (time.perf_counter() - begun) / steps


def measure(config: Any, rounds: int, steps: int) -> dict[str, Any]:
    """Medians of all rounds; each round times both kinds of step, in turns."""
    cached = Timed(config, cached=True)
    both = {"cached": cached, "encoded": Timed(config, cached=False, init=cached.init)}
    times: dict[str, list[float]] = {name: [] for name in both}
    for i in range(rounds):
        for name in sorted(both, reverse=bool(i % 2)):  # neither is always the first
            times[name].append(both[name].seconds(steps))
    middle = {name: statistics.median(each) for name, each in times.items()}
    return {
        "batch_size": config.batch_size,
        "cached_step_seconds": middle["cached"],
        "encoded_step_seconds": middle["encoded"],
        "times_as_fast": middle["encoded"] / middle["cached"],
        "rounds": times,
    }


def main() -> None:
    """Measure, say, and with --out write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variant", default="openmoji", choices=sorted(dit_latent_rf.NETWORKS))
    parser.add_argument("--autoencoder", help="run of the autoencoder")
    parser.add_argument("--latents", help="folder of the cache")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=3, help="of a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_args()
    config = dit_latent_rf.get_config(args.variant)
    config.batch_size = args.batch_size
    config.frozen.autoencoder = args.autoencoder or config.frozen.autoencoder
    config.data.name = f"latents:{args.latents}" if args.latents else config.data.name
    found = {"variant": args.variant} | measure(config, args.rounds, args.steps)
    say(json.dumps(found, indent=1))
    write(found, args.out)


if __name__ == "__main__":
    main()
