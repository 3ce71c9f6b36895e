"""python -m benchmarks.latent_cache [--variant=openmoji] [--rounds=7] [--out=FILE]: what a latent cache saves.

Seconds of a training step of configs/dit_latent_rf.py from its latent cache, and of the same step that encodes its
images: by the autoencoder that the cache was made by, and by one of ArchiRF's widths for latents of the same shape,
with fresh weights, on which its time does not depend. All are timed with their feeds and in turns. --autoencoder and
--latents name the run and the cache, which are made before (see the configuration); without them the configuration's
own are taken.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import tempfile
import time
from typing import Any

import jax

from archirf_jax import sharding
from archirf_jax.data.feeds import make_feed
from archirf_jax.data.pipeline import load
from archirf_jax.first_stages.autoencoder import RUN
from archirf_jax.launch import host, latents, run_directory
from archirf_jax.launch import runs as frozen_runs
from archirf_jax.tasks.building import make_task, resolve
from archirf_jax.training.state import purpose_key
from archirf_jax.training.step_runner import StepRunner
from benchmarks.flops import parameters
from benchmarks.machine import say, write
from configs import autoencoder, dit_latent_rf


class Timed:
    """A training whose steps can be timed; nothing is written.

    Args:
        config: of a run that is trained on a latent cache.
        encoder: the autoencoder that makes latents of the images at each step; None = they are read.
        init: compiled, of another kind of step, which begins with the same state.

    Attributes:
        init: the compiled (key, frozen) -> state.
        autoencoder: the parameters of the one that the steps are given.
    """

    def __init__(self, config: Any, encoder: frozen_runs.Run | None = None, init: Any = None) -> None:
        """Compile the steps."""
        config = config.copy_and_resolve_references().unlock()
        config.mesh.data = 1  # one device
        runs = frozen_runs.named(config, pathlib.Path("nowhere"))
        latents.fit(config, runs)  # the cache's statistics, which all kinds of step take
        if encoder:
            config.data, runs[RUN] = latents.images_of(config.data), encoder
        dataset = load(config.data)
        resolve(config, dataset.num_classes or 1)
        frozen = {name: run.params for name, run in runs.items()}
        self.autoencoder = frozen[RUN]
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


def archirf(run: frozen_runs.Run, place: pathlib.Path) -> frozen_runs.Run:
    """An autoencoder of ArchiRF's widths with fresh weights, whose latents have the shape of this one's."""
    given: Any = run.task
    config, model = run.config.copy_and_resolve_references(), autoencoder.get_config("imagenet64").model
    model.block_out_channels = (128, *[256] * (given.model.factor.bit_length() - 1))
    model.update(latent_channels=config.model.latent_channels, dtype=config.model.dtype)
    with config.unlocked():
        config.model = model
    task: Any = make_task(config)
    params = jax.jit(task.init_params)(jax.random.key(0), {})
    run_directory.write(place, config.to_dict(), params, step=0)
    return frozen_runs.open_run(place)


def measure(config: Any, rounds: int, place: pathlib.Path) -> dict[str, Any]:
    """Medians of all rounds, each of which times a step of every kind, in turns; `place` is an empty folder."""
    own = frozen_runs.named(config, pathlib.Path("nowhere"))[RUN]
    cached = Timed(config)
    encoders = {"own": own, "archirf": archirf(own, place / "autoencoder")}
    kinds = {"cached": cached} | {name: Timed(config, run, cached.init) for name, run in encoders.items()}
    times: dict[str, list[float]] = {name: [] for name in kinds}
    for i in range(rounds):
        for name in sorted(kinds, reverse=bool(i % 2)):  # none is always the first
            times[name].append(kinds[name].seconds(1))
    middle = {name: statistics.median(each) for name, each in times.items()}
    return {
        "batch_size": config.batch_size,
        "cached_step_seconds": middle["cached"],
        "autoencoders": {
            name: {
                "million_parameters": parameters(kinds[name].autoencoder) / 1e6,
                "encoded_step_seconds": middle[name],
                "times_as_fast": middle[name] / middle["cached"],
            }
            for name in encoders
        },
        "rounds": times,
    }


def main() -> None:
    """Measure, say, and with --out write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variant", default="openmoji", choices=sorted(dit_latent_rf.NETWORKS))
    parser.add_argument("--autoencoder", help="run of the autoencoder")
    parser.add_argument("--latents", help="folder of the cache")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_args()
    host.set_up()  # as the commands do
    config = dit_latent_rf.get_config(args.variant)
    config.batch_size = args.batch_size
    config.frozen.autoencoder = args.autoencoder or config.frozen.autoencoder
    config.data.name = f"latents:{args.latents}" if args.latents else config.data.name
    with tempfile.TemporaryDirectory() as place:
        found = {"variant": args.variant} | measure(config, args.rounds, pathlib.Path(place))
    say(json.dumps(found, indent=1))
    write(found, args.out)


if __name__ == "__main__":
    main()
