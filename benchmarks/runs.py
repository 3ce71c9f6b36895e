"""A trained run, opened for measuring: its task, its EMA weights, and images drawn from them."""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from archirf_jax.launch import config as configuration
from archirf_jax.samplers.choice import Choice
from archirf_jax.tasks.diffusion import Diffusion, class_grid
from archirf_jax.training.checkpoints import Checkpoints
from archirf_jax.training.state import purpose_key
from archirf_jax.visuals.pictures import to_uint8

# Evaluations of the network in N steps.
EVALUATIONS = {"heun": lambda n: 2 * n - 1, "edm": lambda n: 2 * n - 1, "midpoint": lambda n: 2 * n}


def open_run(workdir: pathlib.Path, step: int | None = None) -> tuple[Diffusion, Any]:
    """The task of a run directory and its EMA parameters."""
    task = Diffusion(configuration.load(workdir))
    like = jax.eval_shape(task.init_params, jax.random.key(0))
    return task, Checkpoints(workdir / "checkpoints").restore_ema(like, step)[1]


def draw(task: Diffusion, params: Any, choice: Choice, per_class: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """uint8 images (N, H, W, C) and labels (N,), `per_class` of each class."""
    labels, keys = class_grid(purpose_key(seed, "sample"), range(int(task.null)), per_class)
    images = task.sampler(choice)(params, keys, jnp.asarray(labels))
    return to_uint8(np.asarray(images)), np.asarray(labels)


def evaluations(solver: str, steps: int) -> int:
    """How often the network is asked about an image."""
    return EVALUATIONS.get(solver, lambda n: n)(steps)


def steps_within(solver: str, budget: int) -> int:
    """The most steps, at least one, that cost at most `budget` evaluations."""
    return max(n for n in range(1, budget + 1) if n == 1 or evaluations(solver, n) <= budget)
