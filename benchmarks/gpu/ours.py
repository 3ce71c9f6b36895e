"""Training steps and samplers of networks of published sizes: all are compiled at once, then measured one by one."""

from __future__ import annotations

import concurrent.futures
import functools
import os
import sys
from typing import Any

from benchmarks.gpu import sampling, steps
from benchmarks.gpu.networks import NETWORKS, compiled
from benchmarks.gpu.results import Results, started
from benchmarks.machine import describe

# Those that say most come first, as they are compiled and measured in this order.
STEPS = ("DiT-XL/2", "DiT-B/2", "MMDiT, depth 12", "EDM2-S, 64x64", "ADM, ImageNet-64", "DiT-L/2", "DiT-S/2")
TOY = ("DiT-XL/2", "MMDiT, depth 12", "EDM2-S, 64x64", "ADM, ImageNet-64")  # of small sizes these differ
THREADS = 8
COMPILING = 0.6  # share of the time


def main() -> None:
    """Compile all, wait for the turn, measure."""
    results, toy, _ = started()
    results.add("about", describe())
    pool = concurrent.futures.ThreadPoolExecutor(THREADS)
    made: dict[str, concurrent.futures.Future[Any]] = {}
    for name in TOY if toy else STEPS:
        made[f"step, {name}"] = pool.submit(compiled, NETWORKS[name].config(toy), 2 if toy else NETWORKS[name].batch)
    for label, how in list(sampling.GUIDANCE.items())[1:2] if toy else sampling.GUIDANCE.items():
        for name in sampling.SAMPLED[: 1 if toy else None]:
            made[f"sampling, {name}, {label}"] = pool.submit(sampling.compiled, name, how, toy)
    concurrent.futures.wait(made.values(), timeout=COMPILING * results.left)
    results.await_turn()
    rate = steps.matrix_rate(512 if toy else 8192)
    results.add("matrix_operations_per_second", rate)
    for name, future in made.items():
        results.measure(name, functools.partial(figures, results, future, rate, toy), needs=1 if toy else 6)
    sys.stdout.flush()
    os._exit(0)  # what still compiles is not waited for


def figures(results: Results, future: concurrent.futures.Future[Any], rate: float, toy: bool) -> dict[str, Any]:
    """Of a step or a sampler, as soon as it is compiled."""
    made = future.result(timeout=max(results.left - 6, 0.0))
    if isinstance(made, sampling.Sampler):
        return sampling.row(made)
    return steps.row(made, rate, 0.1 if toy else steps.SECONDS, profiled=True)


if __name__ == "__main__":
    main()
