"""python -m benchmarks.sampling_speed [--rounds=7] [--out=FILE]: what the sampler costs beside its network.

Seconds of an evaluation inside the compiled sampler over those of the bare jitted network, called as often, and over
those of a compiled loop of nothing but the network at changing times, which has no calls to pay for; for a batch of 64
and 50 steps of each solver, in alternating rounds. And how many programs were compiled for two seeds and other labels.
The network is the digits' DiT, the smallest there is, so its cost hides the least.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
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


def repeated(run: Callable[[], Any], calls: int) -> Any:
    """The last of so many answers."""
    return [run() for _ in range(calls)][-1]


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
    print(f"{'':15}{'calls':>5}{'bare':>9}    over bare  loop  programs")
    for solver in SOLVERS:
        grid = "karras" if solver == "edm" else "uniform"
        choice = dataclasses.replace(Choice(), solver=solver, grid=grid, steps=STEPS)
        sampler: Any = task.sampler(choice)
        calls = evaluations(solver, STEPS)

        other = sampler(params, jax.random.split(jax.random.key(2), BATCH), labels + 1)

        @jax.jit
        def loop(params: Any, x: jax.Array, calls: int = calls) -> jax.Array:
            model_fn = task.model_fn(params)
            return jax.lax.fori_loop(0, calls, lambda i, x: model_fn(x, jnp.full(BATCH, 1.0 * i), labels), x)

        runs: dict[str, Callable[[], Any]] = {
            "bare": functools.partial(repeated, functools.partial(network, params, x, t, labels), calls),
            "loop": functools.partial(loop, params, x),
            "sampler": functools.partial(sampler, params, keys, labels),
        }
        jax.block_until_ready([other, *(run() for run in runs.values())])
        rounds = [{name: seconds(run) for name, run in runs.items()} for _ in range(args.rounds)]
        table[solver] = {"evaluations": calls, "programs": sampler._cache_size()}
        for name in runs:
            table[solver][f"{name}_milliseconds"] = 1000 * statistics.median(each[name] for each in rounds) / calls
        for name in ("bare", "loop"):
            ratios = [each["sampler"] / each[name] for each in rounds]
            table[solver] |= {f"over_{name}": statistics.median(ratios), f"over_{name}_each": ratios}
        form = "{0:15} {evaluations:4} {bare_milliseconds:8.3f} ms  {over_bare:.3f}  {over_loop:.3f}  {programs}"
        print(form.format(solver, **table[solver]), flush=True)
    if args.out:
        args.out.write_text(
            json.dumps(describe() | {"batch": BATCH, "steps": STEPS, "solvers": table}, indent=1) + "\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
