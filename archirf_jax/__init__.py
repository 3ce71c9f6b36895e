"""Diffusion and rectified-flow image models in JAX: train, sample, compare and understand them.

import archirf_jax as arf

data = arf.data.load("digits")
model = arf.models.DiT.preset("tiny/2", num_classes=data.num_classes)
run = arf.train(model, arf.RectifiedFlow(), data, steps=2_000, batch_size=128, workdir="runs/digits")
arf.show(run.sample(labels=range(10), per_class=8))
"""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable
from typing import Any

from archirf_jax import lazy

# Imported when they are asked for, so that a command takes signals before jax is loaded.
_HOMES = {
    "train": ".launch.library",
    "open": ".launch.library",
    "show": ".launch.library",
    "Run": ".launch.runs",
    "SamplerConfig": ".samplers.config",
    "NetworkDenoiser": ".samplers.denoisers",
    "bind": ".models.binding",
    "RectifiedFlow": ".processes.rectified_flow",
    "DDPM": ".processes.ddpm",
    "EDM": ".processes.edm",
    "UserError": ".errors",
    "Denoiser": ".contracts",
    "ModelFn": ".contracts",
    "Models": ".contracts",
    "Prediction": ".contracts",
    "Setting": ".contracts",
}
_PACKAGES = {
    "conditioners": ".conditioners",
    "data": ".data",
    "grids": ".samplers.grids",
    "guidance": ".samplers.guidance",
    "models": ".models",
    "objectives": ".objectives",
    "processes": ".processes",
    "solvers": ".samplers.solvers",
}
_find = lazy.getter(__name__, _HOMES)


def __getattr__(name: str) -> Any:
    return importlib.import_module(_PACKAGES[name], __name__) if name in _PACKAGES else _find(name)


def __dir__() -> list[str]:
    return sorted(["sample", *_HOMES, *_PACKAGES])


class _Package(types.ModuleType):
    """`archirf_jax.sample` is the sampler, also when the command of that name has been imported."""

    @property
    def sample(self) -> Callable[..., Any]:
        from archirf_jax.samplers.sample import sample

        return sample

    @sample.setter
    def sample(self, module: types.ModuleType) -> None:
        del module


sys.modules[__name__].__class__ = _Package
