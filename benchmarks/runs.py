"""Trainings and samples that benchmarks and experiments measure."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np

from archirf_jax.data.pipeline import load
from archirf_jax.data.preparation import prepare
from archirf_jax.launch import fields
from archirf_jax.launch.companions import diffusion
from archirf_jax.launch.runs import Run, open_run
from archirf_jax.launch.sampling import sample_run
from archirf_jax.launch.training import train_run

# Evaluations of the network in N steps.
EVALUATIONS = {"heun": lambda n: 2 * n - 1, "edm": lambda n: 2 * n - 1, "midpoint": lambda n: 2 * n}


def trained(config: Any, workdir: pathlib.Path, changes: dict[str, Any]) -> Run:
    """The run of a configuration with changes by dotted name; what was trained before is not trained again.

    Data sets that this package builds itself are prepared where they are absent.
    """
    config.update_from_flattened_dict(changes)
    fields.check(config)
    if config.data.name in ("digits", "openmoji"):
        prepare(config.data.name, config.data.dir)
    dataset = load(config.data)
    train_run(config, dataset, workdir, again="the same script")
    return open_run(workdir, data=dataset)


def draw(run: Run, per_class: int, seed: int = 0, **how: Any) -> tuple[np.ndarray, np.ndarray]:
    """Unguided uint8 images (N, H, W, C) and labels (N,), `per_class` of each class; `how` as of `sample_run`."""
    classes = range(diffusion(run).num_classes)
    images = sample_run(run, classes, per_class, seed, **({"guidance_scale": 1.0, "batch_size": 512} | how))
    return images, np.repeat(np.asarray(classes, np.int32), per_class)


def evaluations(solver: str, steps: int) -> int:
    """How often the network is asked about an image."""
    return EVALUATIONS.get(solver, lambda n: n)(steps)


def steps_within(solver: str, budget: int) -> int:
    """The most steps, at least one, that cost at most `budget` evaluations."""
    return max(n for n in range(1, budget + 1) if n == 1 or evaluations(solver, n) <= budget)
