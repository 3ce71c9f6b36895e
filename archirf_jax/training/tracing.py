"""A task's init and step, traced once for the same shapes, whatever is made of them: checks, templates, programs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax

from archirf_jax import sharding
from archirf_jax.contracts import Batch, Frozen, Metrics, Task, TrainState

HELD = 4  # tasks whose traces are kept: a notebook makes many


@functools.lru_cache(HELD)
def init(task: Any) -> Callable[[jax.Array, Frozen], TrainState]:
    """`task.init`, traced once."""
    return jax.jit(task.init, inline=True)


@functools.lru_cache(HELD)
def step(task: Any) -> Callable[[TrainState, Frozen, Batch, jax.Array], tuple[TrainState, Metrics]]:
    """`task.step`, traced once."""
    return jax.jit(task.step, inline=True)


def init_shapes(task: Task, frozen: Frozen) -> TrainState:
    """Shapes of the state before the first step; `frozen` has arrays, or shapes with the places of arrays."""
    shapes: TrainState = jax.eval_shape(init(task), jax.eval_shape(jax.random.key, 0), frozen)
    return shapes


def step_shapes(
    task: Task, state: TrainState, frozen: Frozen, batch: Mapping[str, Any], mesh: jax.sharding.Mesh
) -> tuple[TrainState, Metrics]:
    """Shapes of what a step on a mesh gives, from shapes of its arguments; `StepRunner` compiles the same trace.

    Raises:
        UserError: as the task's step.
    """
    given = sharding.shaped((state, frozen, batch, jax.eval_shape(jax.random.key, 0)), mesh)  # a trace depends on it
    with sharding.gathering(mesh):
        found: tuple[TrainState, Metrics] = jax.eval_shape(step(task), *given)
    return found
