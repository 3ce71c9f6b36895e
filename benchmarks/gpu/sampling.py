"""Images a second of samplers: batches of 64, 50 evaluations, guided always, within an interval, or not at all."""

from __future__ import annotations

import functools
import time
from typing import Any

import jax

from archirf_jax.tasks.building import make_task
from benchmarks.gpu.networks import NETWORKS, counted_memory, random_batch
from benchmarks.gpu.results import started
from benchmarks.machine import describe

BATCH, EVALUATIONS, SCALE, INTERVAL = 64, 50, 1.5, (0.2, 0.65)
SAMPLED = ("DiT-XL/2", "EDM2-S, 64x64")
GUIDANCE: dict[str, dict[str, Any]] = {
    "guided": {"guidance_scale": SCALE},
    "guided within an interval": {"guidance_scale": SCALE, "guidance_interval": INTERVAL},
    "not guided": {"guidance_scale": 1.0},
}


def row(name: str, how: dict[str, Any], toy: bool) -> dict[str, Any]:
    """The figures of a sampler."""
    batch, steps = (2, 2) if toy else (BATCH, EVALUATIONS)
    task: Any = make_task(NETWORKS[name].config(toy))
    params = jax.jit(lambda key: task.init_params(key, {}))(jax.random.key(0))
    grid = "karras" if "EDM2" in name else "uniform"
    sampler = task.sampler(task.sampling.replace(solver="euler", grid=grid, steps=steps, **how))
    inputs: Any = params, {}, random_batch(task, batch), jax.random.split(jax.random.key(1), batch)
    begun = time.perf_counter()
    jax.block_until_ready(sampler(*inputs))
    first = time.perf_counter()
    jax.block_until_ready(sampler(*inputs))
    seconds = time.perf_counter() - first
    return {
        "batch": batch,
        "evaluations": steps,
        "images_per_second": batch / seconds,
        "first_call_seconds": first - begun,
        "peak_bytes": counted_memory(),
    } | how


def main() -> None:
    """Measure all."""
    results, toy = started()
    results.add("about", describe())
    for name in SAMPLED:
        for label, how in GUIDANCE.items():
            results.measure(f"{name}, {label}", functools.partial(row, name, how, toy), needs=1 if toy else 10)


if __name__ == "__main__":
    main()
