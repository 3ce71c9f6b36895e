"""Run directories as a training leaves them, without the time of one: networks of random numbers."""

from __future__ import annotations

import functools
import json
import pathlib
import zlib
from typing import Any, NamedTuple

import jax
import numpy as np

from archirf_jax.launch import run_directory
from archirf_jax.tasks.building import make_task, resolve

STEP = 3  # of the checkpoint
# Fields of networks that make them as small as they can be.
TINY_DIT = {"model.hidden_size": 32, "model.depth": 1, "model.num_heads": 2, "model.registers": 0}
TINY_ADM = {
    "model.model_channels": 32,
    "model.channel_mult": (1,),
    "model.attention_downsamples": (),
    "model.num_head_channels": 16,
}


class Saved(NamedTuple):
    """A run directory, its task and its average."""

    workdir: pathlib.Path
    task: Any
    params: Any


def save(config: Any, workdir: pathlib.Path, changes: dict[str, Any], spread: float = 0.1, where: str = "") -> Saved:
    """A new run; layers that begin at 0 do not stay there.

    Args:
        config: a module of configs.
        workdir: where to.
        changes: fields by dotted name, new ones too.
        spread: of the numbers that are added to fresh parameters.
        where: part of the names of those that they are added to.
    """
    config = config.get_config()
    with config.unlocked(), config.ignore_type():
        for name, value in changes.items():
            *groups, field = name.split(".")
            functools.reduce(lambda group, key: group[key], groups, config)[field] = value
    resolve(config, config.data.num_classes or 10)
    task: Any = make_task(config)
    params = _fresh(task, exactly=bool(where) or spread < 0.1)
    params = jax.tree_util.tree_map_with_path(functools.partial(_moved, spread=spread, where=where), params)
    run_directory.write(workdir, config.to_dict(), params, STEP)
    return Saved(workdir, task, params)


def change(workdir: pathlib.Path, changes: dict[str, Any]) -> pathlib.Path:
    """Change fields of a run's config.json by dotted name; returns the run."""
    path = workdir / "config.json"
    config = json.loads(path.read_text())
    for name, value in changes.items():
        *groups, field = name.split(".")
        functools.reduce(lambda group, key: group[key], groups, config)[field] = value
    path.write_text(json.dumps(config))
    return workdir


def _fresh(task: Any, exactly: bool) -> Any:
    """Parameters as large as fresh ones, which need no compiler; fresh ones if asked to, or where some never change."""
    shapes = jax.eval_shape(task.init_params, jax.random.key(0), {})
    if exactly or "frozen_" in str(jax.tree.structure(shapes)):
        return jax.jit(task.init_params)(jax.random.key(0), {})
    random = np.random.default_rng(0)

    def one(path: Any, leaf: Any) -> np.ndarray:
        size = np.prod(leaf.shape[:-1]) ** -0.5 if leaf.ndim > 1 else 0.0
        return np.float32(path[-1].key == "scale") + (size * random.normal(size=leaf.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(one, shapes)


def _moved(path: Any, leaf: Any, spread: float, where: str) -> np.ndarray:
    name = jax.tree_util.keystr(path[1:])  # without the module
    numbers = np.random.default_rng(zlib.crc32(name.encode())).normal(size=leaf.shape)
    return np.asarray(leaf) + np.float32(spread * (where in name)) * numbers.astype(np.float32)
