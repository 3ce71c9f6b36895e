"""Training steps of networks of published sizes: images a second, memory, compile time, share of the matrix rate."""

from __future__ import annotations

import time
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.gpu.kernels import kernels
from benchmarks.gpu.networks import Compiled, counted_memory, operations
from benchmarks.gpu.results import FAILURES, of_exception

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


def row(made: Compiled, rate: float, seconds: float = SECONDS, profiled: bool = False) -> dict[str, Any]:
    """The figures of a network that is stepped for so long on a device with that matrix rate, and its kernels."""
    (state, batch), key, steps = made.begin(), jax.random.key(1), 0
    for _ in range(2):
        state, metrics = made.step(state, {}, batch, key)
    jax.block_until_ready(metrics)
    begun = time.perf_counter()
    while time.perf_counter() - begun < seconds:
        for _ in range(5):
            state, metrics = made.step(state, {}, batch, key)
        jax.block_until_ready(metrics)
        steps += 5
    each = (time.perf_counter() - begun) / steps
    taken = made.step.memory_analysis()
    skipped = float(metrics["skipped"][0])
    found: dict[str, Any] = {}
    if profiled:

        def step() -> Any:
            nonlocal state
            state, metrics = made.step(state, {}, batch, key)
            return metrics

        try:
            found = kernels(step, 3)
        except FAILURES as e:  # a profiler that may not look does not cost the row
            found = {"kernels_error": of_exception(e)}
    return {
        "batch": made.batch_size,
        "images_per_second": made.batch_size / each,
        "step_seconds": each,
        "compile_seconds": made.seconds,
        "share_of_matrix_rate": operations(made) * made.batch_size / each / rate,
        "program_bytes": taken.argument_size_in_bytes + taken.temp_size_in_bytes,
        "peak_bytes": counted_memory(),
        "skipped": skipped,
    } | found
