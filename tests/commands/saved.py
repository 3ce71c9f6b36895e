"""Run directories as a training leaves them, without the time of one: networks of random numbers."""

from __future__ import annotations

import functools
import pathlib
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from archirf_jax import registry, tasks
from archirf_jax.launch import config as configuration
from archirf_jax.training.checkpoints import Checkpoints
from archirf_jax.training.state import TrainState

STEP = 3  # of the checkpoint
# Fields of ADM's networks that make them as small as they can be.
TINY_ADM = {
    "model.model_channels": 32,
    "model.channel_mult": (1, 1),
    "model.attention_downsamples": (2,),
    "model.num_head_channels": 16,
}


def save(
    config: Any, workdir: pathlib.Path, changes: dict[str, Any], spread: float = 0.1, where: str = ""
) -> tuple[Any, Any]:
    """The task and the average of a new run; layers that begin at 0 do not stay there.

    Args:
        config: of a file in configs.
        workdir: where to.
        changes: fields by dotted name, new ones too.
        spread: of the numbers that are added to fresh parameters.
        where: part of the names of those that they are added to.
    """
    with config.unlocked():
        for name, value in {"data.num_classes": 10, **changes}.items():
            group, _, field = name.rpartition(".")
            (config[group] if group else config)[field] = value
    task = registry.build(tasks, "config.task", config.task, {"config": config})
    params = jax.jit(task.init_params)(jax.random.key(0))
    ema = jax.tree_util.tree_map_with_path(functools.partial(_moved, spread=spread, where=where), params)
    checkpoints = Checkpoints(workdir / "checkpoints", keep=1)
    checkpoints.save(TrainState(step=jnp.int32(STEP), params=params, ema=ema, opt=()), config.to_dict())
    checkpoints.wait()
    checkpoints.close()
    configuration.save(config, workdir)
    return task, ema


def _moved(path: Any, leaf: jax.Array, spread: float, where: str) -> jax.Array:
    name = jax.tree_util.keystr(path)
    numbers = np.random.default_rng(zlib.crc32(name.encode())).normal(size=leaf.shape)
    return leaf + spread * jnp.asarray(numbers, leaf.dtype) if where in name else leaf
