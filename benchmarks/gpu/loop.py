"""The cost of a training apart from its steps: the loop, data from memory and from Grain, saves, start-up."""

from __future__ import annotations

import functools
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

import jax

from archirf_jax.data.feeds import make_feed
from archirf_jax.data.pipeline import load
from archirf_jax.data.preparation import prepare
from archirf_jax.tasks.building import make_task, resolve
from benchmarks import checkpoint_blocking
from benchmarks.gpu.results import started
from benchmarks.machine import describe
from benchmarks.training_speed import loop_seconds
from configs import dit_rf

START = """
import sys
import jax
from archirf_jax.launch import host
host.set_up()  # as the commands do
from benchmarks.gpu.networks import NETWORKS, compiled
made = compiled(NETWORKS["DiT-XL/2"].config(sys.argv[1] == "toy"), int(sys.argv[2]))
state, batch = made.begin()
jax.block_until_ready(made.step(state, {}, batch, jax.random.key(1)))
"""


def loop(streams: bool, toy: bool, data: str) -> dict[str, Any]:
    """Shares of the time of a training in which the device had no work, and of the host's thread."""
    config = dit_rf.get_config()
    steps = 30 if toy else 1000
    changes = {"data.dir": data, "steps": steps, "log.every_steps": steps // 3, "schedule.warmup_steps": 1}
    changes |= {"checkpoint.every_steps": steps, "sample.every_steps": steps}
    changes |= {"data.device_cache_mib": 0} if streams else {}
    changes |= {"model.hidden_size": 16, "model.depth": 1} if toy else {}
    config.update_from_flattened_dict(changes)
    dataset = load(config.data)
    resolve(config, 10)
    task: Any = make_task(config)
    with tempfile.TemporaryDirectory() as folder:
        seconds, idle, host = loop_seconds(task, make_feed(dataset, config), config, pathlib.Path(folder) / "run")
    return {
        "images_per_second": config.batch_size / seconds,
        "share_device_idle": idle,
        "share_host_cpu": host,
    }


def saves(toy: bool) -> dict[str, Any]:
    """Seconds for which a checkpoint of DiT-B/4 keeps a training waiting."""
    with tempfile.TemporaryDirectory() as folder:
        return checkpoint_blocking.figures(1 if toy else 3, pathlib.Path(folder))


def start_up(toy: bool) -> dict[str, Any]:
    """Seconds from the command to the end of the first step of DiT-XL/2, with an empty cache of programs and again."""
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {
            "JAX_COMPILATION_CACHE_DIR": folder,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",  # as the commands do
        }
        for _ in range(2):
            begun = time.monotonic()
            command = [sys.executable, "-c", START, "toy" if toy else "", "2" if toy else "64"]
            subprocess.run(command, check=True, env=environment)
            seconds.append(time.monotonic() - begun)
    return {"cold_seconds": seconds[0], "warm_seconds": seconds[1]}


def main() -> None:
    """Measure all."""
    results, toy, _ = started()
    results.add("about", describe())
    with tempfile.TemporaryDirectory() as data:
        prepare("digits", data)
        results.measure("loop, from memory", functools.partial(loop, False, toy, data))
        results.measure("loop, from Grain", functools.partial(loop, True, toy, data))
    jax.clear_caches()
    results.measure("start-up", functools.partial(start_up, toy))
    if not toy:
        results.measure("saves", functools.partial(saves, toy))


if __name__ == "__main__":
    main()
