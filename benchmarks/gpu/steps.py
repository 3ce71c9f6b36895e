"""Training steps of networks of published sizes: images a second, memory, compile time, share of the matrix rate."""

from __future__ import annotations

import functools
import time
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.gpu.networks import NETWORKS, counted_memory, operations, start
from benchmarks.gpu.results import started
from benchmarks.machine import describe

SECONDS = 3.0  # for which a network is stepped


def matrix_rate(size: int, repeats: int = 20) -> float:
    """Floating-point operations a second of a bfloat16 product of random square matrices."""
    a, b = (jax.random.normal(key, (size, size), jnp.bfloat16) for key in jax.random.split(jax.random.key(0)))
    product = jax.jit(lambda a, b: a @ b)
    jax.block_until_ready(product(a, b))
    begun = time.perf_counter()
    for _ in range(repeats):
        c = product(a, b)
    jax.block_until_ready(c)
    return 2.0 * size**3 * repeats / (time.perf_counter() - begun)


def row(name: str, rate: float, toy: bool) -> dict[str, Any]:
    """The figures of a network; the counter of memory is of all until then, so small networks come first."""
    batch = 2 if toy else NETWORKS[name].batch
    made = start(NETWORKS[name].config(toy), batch)
    state, key, steps = made.state, jax.random.key(1), 0
    for _ in range(2):
        state, metrics = made.step(state, {}, made.batch, key)
    jax.block_until_ready(metrics)
    begun = time.perf_counter()
    while time.perf_counter() - begun < (0.1 if toy else SECONDS):
        for _ in range(5):
            state, metrics = made.step(state, {}, made.batch, key)
        jax.block_until_ready(metrics)
        steps += 5
    seconds = (time.perf_counter() - begun) / steps
    taken = made.step.memory_analysis()
    return {
        "batch": batch,
        "images_per_second": batch / seconds,
        "step_seconds": seconds,
        "compile_seconds": made.compile_seconds,
        "share_of_matrix_rate": operations(made) * batch / seconds / rate,
        "program_bytes": taken.argument_size_in_bytes + taken.temp_size_in_bytes,
        "peak_bytes": counted_memory(),
        "skipped": float(metrics["skipped"][0]),
    }


def main() -> None:
    """Measure all."""
    results, toy = started()
    results.add("about", describe())
    rate = matrix_rate(512 if toy else 8192)
    results.add("matrix_operations_per_second", rate)
    for name in NETWORKS:
        results.measure(name, functools.partial(row, name, rate, toy), needs=1 if toy else 12)


if __name__ == "__main__":
    main()
