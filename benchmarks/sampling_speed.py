"""python -m benchmarks.sampling_speed [--rounds=7] [--out=FILE]: what the sampler costs beside its network.

Seconds of an evaluation inside the compiled sampler over those of the bare jitted network, for a batch of 64 and 50
steps of each solver, in alternating pairs; and how many programs were compiled. The network is the digits' DiT, the
smallest there is, so its cost hides the least.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from archirf_jax.samplers.choice import Choice
from archirf_jax.tasks.diffusion import Diffusion
from benchmarks.machine import describe
from benchmarks.runs import evaluations
from configs import dit_rf

BATCH, STEPS = 64, 50
SOLVERS = ("euler", "heun", "midpoint", "ddim", "ddpm", "dpmpp_2m", "euler_maruyama", "edm")


def seconds(run: Callable[[], Any]) -> float:
    """Wall time of a call."""
    begun = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - begun


def main() -> int:
    """Measure, print, and with --out write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_args()
    config = dit_rf.get_config()
    config.data.num_classes = 10
    task = Diffusion(config)
    params = jax.jit(task.init_params)(jax.random.key(0))
    keys, labels = jax.random.split(jax.random.key(1), BATCH), jnp.zeros(BATCH, jnp.int32)
    x, t = jnp.zeros((BATCH, *task.image_shape)), jnp.full(BATCH, 500.0)
    network = jax.jit(lambda params, x, t, y: task.model_fn(params)(x, t, y))
    table: dict[str, dict[str, Any]] = {}
    for solver in SOLVERS:
        grid = "karras" if solver == "edm" else "uniform"
        choice = dataclasses.replace(Choice(), solver=solver, grid=grid, steps=STEPS)
        sampler: Any = task.sampler(choice)
        calls = evaluations(solver, STEPS)

        def bare(calls: int = calls) -> Any:
            return [network(params, x, t, labels) for _ in range(calls)][-1]

        def whole(sampler: Any = sampler) -> Any:
            return sampler(params, keys, labels)

        for run in (bare, whole):
            jax.block_until_ready(run())
        pairs = [(seconds(bare), seconds(whole)) for _ in range(args.rounds)]
        table[solver] = {
            "evaluations": calls,
            "bare_milliseconds": 1000 * statistics.median(pair[0] for pair in pairs) / calls,
            "ratio": statistics.median(pair[1] / pair[0] for pair in pairs),
            "ratios": [pair[1] / pair[0] for pair in pairs],
            "programs": sampler._cache_size(),
        }
        print(
            "{0:15} {evaluations:4} {bare_milliseconds:8.3f} ms  {ratio:.3f}".format(solver, **table[solver]),
            flush=True,
        )
    if args.out:
        args.out.write_text(
            json.dumps(describe() | {"batch": BATCH, "steps": STEPS, "solvers": table}, indent=1) + "\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
