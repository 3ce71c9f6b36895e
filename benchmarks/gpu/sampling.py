"""Images a second of samplers: batches of 64, 50 evaluations, guided always, within an interval, or not at all."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import jax

from archirf_jax.data.fields import shapes
from archirf_jax.tasks.building import make_task
from benchmarks.gpu.networks import NETWORKS, counted_memory, random_batch

BATCH, EVALUATIONS, SCALE, INTERVAL = 64, 50, 1.5, (0.2, 0.65)
SAMPLED = ("DiT-XL/2", "EDM2-S, 64x64")
GUIDANCE: dict[str, dict[str, Any]] = {
    "guided": {"guidance_scale": SCALE},
    "guided within an interval": {"guidance_scale": SCALE, "guidance_interval": INTERVAL},
    "not guided": {"guidance_scale": 1.0},
}


class Sampler(NamedTuple):
    """A sampler that can be run; nothing of it is on the device yet.

    Attributes:
        task: of the network.
        batch_size: images at once.
        how: guidance.
        init: compiled key -> params.
        sample: compiled (params, frozen, batch, keys) -> images.
    """

    task: Any
    batch_size: int
    how: dict[str, Any]
    init: Any
    sample: Any


def compiled(name: str, how: dict[str, Any], toy: bool) -> Sampler:
    """Compile from shapes alone."""
    batch, steps = (2, 2) if toy else (BATCH, EVALUATIONS)
    task: Any = make_task(NETWORKS[name].config(toy))
    grid = "karras" if "EDM2" in name else "uniform"
    sampler = task.sampler(task.sampling.replace(solver="euler", grid=grid, steps=steps, **how))
    init, key = jax.jit(lambda key: task.init_params(key, {})), jax.eval_shape(jax.random.key, 0)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch))
    inputs: Any = jax.eval_shape(init, key), {}, shapes(task.fields, batch), keys
    return Sampler(task, batch, how, init.lower(key).compile(), sampler.lower(*inputs).compile())


def row(made: Sampler) -> dict[str, Any]:
    """The figures of a sampler."""
    batch = random_batch(made.task, made.batch_size)
    inputs: Any = made.init(jax.random.key(0)), {}, batch, jax.random.split(jax.random.key(1), made.batch_size)
    jax.block_until_ready(made.sample(*inputs))
    begun = time.perf_counter()
    jax.block_until_ready(made.sample(*inputs))
    seconds = time.perf_counter() - begun
    figures = {"batch": made.batch_size, "images_per_second": made.batch_size / seconds, "seconds_of_batch": seconds}
    return figures | {"peak_bytes": counted_memory()} | made.how
