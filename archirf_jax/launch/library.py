"""The library: train, open and look at runs from a notebook or a script."""

from __future__ import annotations

import dataclasses
import importlib
import pathlib
import pkgutil
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import ml_collections
import numpy as np

from archirf_jax import models
from archirf_jax.data.dataset import Dataset
from archirf_jax.errors import UserError
from archirf_jax.files import expand
from archirf_jax.launch import fields, host, messages
from archirf_jax.launch.defaults import defaults
from archirf_jax.launch.runs import GIVEN, Run, open_run
from archirf_jax.launch.training import train_run
from archirf_jax.processes.base import Process
from archirf_jax.visuals import pictures

# The defaults of training and sampling of each process.
OBJECTIVES = {
    "rectified_flow": {"name": "regression", "time_distribution": "logit_normal"},
    "edm": {"name": "regression", "time_distribution": "log_normal"},
    "ddpm": {"name": "ddpm_hybrid"},
}
SAMPLING = {
    "rectified_flow": {"solver": {"name": "dpmpp_2m"}, "grid": {"name": "uniform"}, "steps": 20},
    "edm": {"solver": {"name": "edm"}, "grid": {"name": "karras"}, "steps": 18},
}
OTHERS = {"solver": {"name": "dpmpp_2m"}, "grid": {"name": "karras"}, "steps": 20}


def train(
    model: Any,
    process: Process,
    data: Dataset,
    *,
    workdir: str | pathlib.Path,
    steps: int = 10_000,
    batch_size: int = 128,
    learning_rate: float = 1e-4,
    ema: float = 0.9999,
    schedule: str = "cosine",
    warmup_steps: int | None = None,
    objective: Mapping[str, Any] | None = None,
    guidance_scale: float = 1.5,
    seed: int = 0,
    init_from: str | pathlib.Path | None = None,
    changes: Mapping[str, Any] | None = None,
) -> Run:
    """Train a network, or go on with the run in `workdir`; the same call after an interruption gives the same bytes.

    Args:
        model: a Linen module, called (x (B, H, W, C), network times (B,), condition) -> like x.
        process: between data and noise.
        data: from `archirf_jax.data`.
        workdir: run directory.
        steps: optimizer steps.
        batch_size: images a step.
        learning_rate: the highest.
        ema: decay of the moving average that samples are drawn with.
        schedule: "cosine", "linear" or "constant" after the warm-up.
        warmup_steps: of the learning rate; None = a twentieth of the steps.
        objective: fields of `config.objective`, its name among them; None = the process's usual one.
        guidance_scale: the default of samples; 1 = off.
        seed: of parameters, order and noise.
        init_from: run, trained or imported, whose weights the network begins with where they fit.
        changes: any other field of the configuration by dotted name, such as {"optimizer.name": "muon"}.

    Raises:
        UserError: something does not fit.
        KeyboardInterrupt: a signal stopped the training, after a save.
    """
    _set_up()
    config = defaults()
    name = _name(process)
    with config.unlocked():
        config.update(seed=seed, steps=steps, batch_size=batch_size)
        config.init_from = None if init_from is None else str(init_from)
        config.data = ml_collections.ConfigDict(data.config())
        config.model = ml_collections.ConfigDict(described(model))
        config.process = ml_collections.ConfigDict({"name": name} | dataclasses.asdict(process))
        config.objective = ml_collections.ConfigDict(dict(objective or OBJECTIVES.get(name, {"name": "regression"})))
        config.optimizer.learning_rate, config.ema.decay = learning_rate, ema
        config.schedule.update(name=schedule, warmup_steps=steps // 20 if warmup_steps is None else warmup_steps)
        config.sample.update(SAMPLING.get(name, OTHERS))
        config.sample.guidance.scale = guidance_scale
        for group in ("checkpoint", "sample"):
            config[group].every_steps = max(1, steps // 4)
        config.log.every_steps = max(1, min(config.log.every_steps, steps // 20))
        config.update_from_flattened_dict(dict(changes or {}))
    fields.check(config)
    place = expand(str(workdir), "workdir")
    if not train_run(config, data, place, again="the same call", model=model):
        raise KeyboardInterrupt(f"saved in {place}; the same call goes on")
    return open_run(place, model=model, data=data)


def open(directory: str | pathlib.Path, *, step: int | None = None, average: str = "ema", model: Any = None) -> Run:
    """A run that was trained, imported or averaged afterwards.

    Args:
        directory: of the run.
        step: of its checkpoint; None = the newest.
        average: which moving average.
        model: the network of a run that was trained with a class of a notebook or script.

    Raises:
        UserError: there is no run, or it does not build.
    """
    _set_up()
    return open_run(expand(str(directory), "workdir"), step, average, model=model)


def show(images: np.ndarray, columns: int | None = None) -> Any:
    """Images (N, H, W, C) or (rows, columns, H, W, C) uint8 as one picture, which a notebook displays.

    Args:
        images: uint8, with 1 or 3 channels.
        columns: of the grid; None = about a square, at most ten.
    """
    images = np.asarray(images)
    if images.ndim == 4:
        columns = columns or min(10, int(np.ceil(len(images) ** 0.5)))
        missing = -len(images) % columns
        filled = np.concatenate([images, np.full((missing, *images.shape[1:]), 255, np.uint8)])
        images = filled.reshape(-1, columns, *images.shape[1:])
    return pictures.as_pillow(pictures.grid(images))


def _set_up() -> None:
    messages.set_up()
    host.keep_memory()
    host.set_gpu_flags()


def described(model: Any) -> dict[str, Any]:
    """`config.model` of a Linen module: the name of the file that builds it, and its fields."""
    values = {
        field.name: _plain(getattr(model, field.name))
        for field in dataclasses.fields(model)
        if field.init and field.name not in ("parent", "name")
    }
    for name in [module.name for module in pkgutil.iter_modules(models.__path__)]:
        if type(model).__module__ == f"{models.__name__}.{name}":
            return {"name": name} | values
    home = type(model).__module__
    if home != "__main__" and getattr(importlib.import_module(home), "build", None) is type(model):
        return {"name": home} | values
    return {"name": GIVEN}


def _name(process: Process) -> str:
    home = type(process).__module__
    own = home.removeprefix("archirf_jax.processes.")
    if home == "__main__":
        what = "must be of a module of its own with a `build`, so that the run can be opened again"
        raise UserError("process", type(process).__name__, what)
    return own


def _plain(value: Any) -> Any:
    """The value as a configuration has it."""
    if isinstance(value, str | int | float | bool | type(None)):
        return value
    if isinstance(value, list | tuple):
        return tuple(_plain(each) for each in value)
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    return jnp.dtype(value).name
