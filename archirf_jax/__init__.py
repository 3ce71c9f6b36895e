"""Diffusion and rectified-flow image models in JAX: train, sample, compare and understand them.

import archirf_jax as arf

data = arf.data.load("digits")
model = arf.models.DiT.preset("tiny/2", num_classes=data.num_classes)
run = arf.train(model, arf.RectifiedFlow(), data, steps=2_000, batch_size=128, workdir="runs/digits")
arf.show(run.sample(labels=range(10), per_class=8))
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from archirf_jax import data, guidance, models, objectives, processes, solvers
    from archirf_jax.contracts import Batch, Condition, Denoiser, ModelFn, Prediction
    from archirf_jax.errors import UserError
    from archirf_jax.launch.library import open, show, train
    from archirf_jax.launch.runs import Run
    from archirf_jax.models.binding import bind
    from archirf_jax.processes.ddpm import DDPM
    from archirf_jax.processes.edm import EDM
    from archirf_jax.processes.rectified_flow import RectifiedFlow
    from archirf_jax.samplers.config import SamplerConfig
    from archirf_jax.samplers.denoisers import NetworkDenoiser
    from archirf_jax.samplers.sample import sample

# Imported when they are asked for, so that a command takes signals before jax is loaded.
_PUBLIC = {
    "train": "launch.library",
    "open": "launch.library",
    "show": "launch.library",
    "Run": "launch.runs",
    "sample": "samplers.sample",
    "SamplerConfig": "samplers.config",
    "NetworkDenoiser": "samplers.denoisers",
    "bind": "models.binding",
    "RectifiedFlow": "processes.rectified_flow",
    "DDPM": "processes.ddpm",
    "EDM": "processes.edm",
    "UserError": "errors",
    "Batch": "contracts",
    "Condition": "contracts",
    "Denoiser": "contracts",
    "ModelFn": "contracts",
    "Prediction": "contracts",
}
_ROOMS = {
    "data": "data",
    "models": "models",
    "processes": "processes",
    "objectives": "objectives",
    "conditioners": "conditioners",
    "solvers": "samplers.solvers",
    "guidance": "samplers.guidance",
    "grids": "samplers.grids",
}
__all__ = [*_PUBLIC, *_ROOMS]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"archirf_jax.{_ROOMS[name]}")
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"archirf_jax.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
