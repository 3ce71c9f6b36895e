"""python -m benchmarks.sampling_speed [--rounds=7] [--out=FILE]: what the sampler costs in addition to its network.

Seconds of an evaluation inside the compiled sampler over those of the bare jitted network, called as often, and over
those of a compiled loop of nothing but the network at changing times, which has no calls to pay for; for a batch of 64
and 50 steps of each solver, in alternating rounds. And how many programs were compiled for two seeds and other labels.
The network is the digits' DiT, the smallest there is, so its cost hides the least.
"""

from __future__ import annotations

import argparse
import functools
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from archirf_jax.launch import host
from archirf_jax.tasks.building import make_task, resolve
from archirf_jax.tasks.diffusion import Diffusion
from benchmarks.machine import say, write
from benchmarks.runs import evaluations
from configs import dit_rf

BATCH, STEPS = 64, 50
SOLVERS = ("euler", "heun", "midpoint", "ddim", "ddpm", "dpmpp_2m", "euler_maruyama", "edm")
FORM = "{0:15} {evaluations:4} {bare_milliseconds:8.3f} ms  {over_bare:.3f}  {over_loop:.3f}  {programs}"


def seconds(run: Callable[[], Any]) -> float:
    """Wall time of a call."""
    begun = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - begun


def repeated(run: Callable[[], Any], calls: int) -> Any:
    """The last of so many answers."""
    return [run() for _ in range(calls)][-1]


def measure(task: Diffusion, params: Any, solver: str, rounds: int) -> dict[str, Any]:
    """The row of a solver."""
    grid, calls = "karras" if solver == "edm" else "uniform", evaluations(solver, STEPS)
    sampler: Any = task.sampler(task.sampling.replace(solver=solver, grid=grid, steps=STEPS, guidance_scale=1.0))
    labels, keys = jnp.zeros(BATCH, jnp.int32), jax.random.split(jax.random.key(1), BATCH)
    x, t = jnp.zeros((BATCH, *task.shape)), jnp.full(BATCH, 500.0)

    @jax.jit
    def network(params: Any, x: jax.Array, t: jax.Array, labels: jax.Array) -> jax.Array:
        return task.model_fn(params)(x, t, {"label": labels})[0]

    @jax.jit
    def loop(params: Any, x: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, calls, lambda i, x: network(params, x, jnp.full(BATCH, 1.0 * i), labels), x)

    runs: dict[str, Callable[[], Any]] = {
        "bare": functools.partial(repeated, functools.partial(network, params, x, t, labels), calls),
        "loop": functools.partial(loop, params, x),
        "sampler": functools.partial(sampler, params, {}, {"label": labels}, keys),
    }
    other = sampler(params, {}, {"label": labels + 1}, jax.random.split(jax.random.key(2), BATCH))
    jax.block_until_ready([other, *(run() for run in runs.values())])
    each = [{name: seconds(run) for name, run in runs.items()} for _ in range(rounds)]
    row: dict[str, Any] = {"evaluations": calls, "programs": sampler._cache_size()}
    row |= {f"{name}_milliseconds": 1000 * statistics.median(one[name] for one in each) / calls for name in runs}
    for name in ("bare", "loop"):
        ratios = [one["sampler"] / one[name] for one in each]
        row |= {f"over_{name}": statistics.median(ratios), f"over_{name}_each": ratios}
    return row


def main() -> None:
    """Measure, say, and with --out write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--solvers", default=",".join(SOLVERS), help="some of them")
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_args()
    host.set_up()  # as the commands do
    config = dit_rf.get_config()
    resolve(config, 10)
    task: Any = make_task(config)
    params = jax.jit(lambda key: task.init_params(key, {}))(jax.random.key(0))
    table = {}
    say(f"{'':15}{'calls':>5}{'bare':>9}    over bare  loop  programs")
    for solver in args.solvers.split(","):
        table[solver] = measure(task, params, solver, args.rounds)
        say(FORM.format(solver, **table[solver]))
    write({"batch": BATCH, "steps": STEPS, "solvers": table}, args.out)


if __name__ == "__main__":
    main()
