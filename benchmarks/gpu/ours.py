"""Training steps and samplers of networks of published sizes: a group is compiled at once, then measured one by one."""

from __future__ import annotations

import concurrent.futures
import functools
import os
import sys
from collections.abc import Callable
from typing import Any

from benchmarks.gpu import sampling, steps
from benchmarks.gpu.networks import NETWORKS, compiled
from benchmarks.gpu.results import started
from benchmarks.machine import describe

# Those that say most come first. Nothing is measured while anything compiles: compilers try kernels on the device.
GROUPS = (
    ("step, DiT-XL/2", "step, DiT-B/2", "sampling, DiT-XL/2, guided", "step, MMDiT, depth 12"),
    ("step, EDM2-S, 64x64", "step, ADM, ImageNet-64", "sampling, EDM2-S, 64x64, guided"),
    ("step, DiT-L/2", "step, DiT-S/2", "sampling, DiT-XL/2, guided within an interval"),
    (
        "sampling, EDM2-S, 64x64, guided within an interval",
        "sampling, DiT-XL/2, not guided",
        "sampling, EDM2-S, 64x64, not guided",
    ),
)
STEPS = tuple(name.removeprefix("step, ") for group in GROUPS for name in group if name.startswith("step, "))
TOY = (
    *("step, DiT-XL/2", "step, MMDiT, depth 12", "step, EDM2-S, 64x64"),  # others are alike
    "sampling, DiT-XL/2, guided within an interval",
)


def main() -> None:
    """Wait for the turn, then compile and measure group by group."""
    results, toy, _ = started()
    results.add("about", describe())
    results.await_turn()
    rate = 0.0
    for group in GROUPS:
        names = [name for name in group if results.wants(name) and (name in TOY or not toy)]
        pool = concurrent.futures.ThreadPoolExecutor(len(GROUPS[0]))
        made = {name: pool.submit(preparation(name, toy)) for name in names}
        concurrent.futures.wait(made.values(), timeout=max(results.left, 0.0))
        if names and not rate:
            rate = steps.matrix_rate(512 if toy else 8192)
            results.add("matrix_operations_per_second", rate)
        for name, future in made.items():
            results.measure(name, functools.partial(figures, future, rate, toy), needs=1 if toy else 6)
    sys.stdout.flush()
    os._exit(0)  # what still compiles is not waited for


def preparation(name: str, toy: bool) -> Callable[[], Any]:
    """What compiles the row of that name."""
    kind, _, rest = name.partition(", ")
    if kind == "step":
        return lambda: compiled(NETWORKS[rest].config(toy), 2 if toy else NETWORKS[rest].batch)
    network, _, label = rest.rpartition(", ")
    return lambda: sampling.compiled(network, sampling.GUIDANCE[label], toy)


def figures(future: concurrent.futures.Future[Any], rate: float, toy: bool) -> dict[str, Any]:
    """Of a step or a sampler that is compiled."""
    made = future.result(timeout=0)
    if isinstance(made, sampling.Sampler):
        return sampling.row(made)
    return steps.row(made, rate, 0.1 if toy else steps.SECONDS, profiled=True)


if __name__ == "__main__":
    main()
