"""What a check traces, a program is made of: each of a task's functions is traced once."""

from __future__ import annotations

from collections import Counter
from typing import Any

import jax
import numpy as np
import pytest

from archirf_jax import sharding
from archirf_jax.contracts import TrainState
from archirf_jax.training import start, tracing
from archirf_jax.training.step_runner import StepRunner
from tests.training.toys import Denoising, Feed, config


class Counted(Denoising):
    """Counts how often its functions are traced."""

    def __init__(self, made: Any) -> None:
        super().__init__(made)
        self.traced = Counter[str]()

    def init(self, key: jax.Array, frozen: Any) -> TrainState:
        self.traced["init"] += 1
        return super().init(key, frozen)

    def step(self, state: TrainState, frozen: Any, batch: Any, key: jax.Array) -> Any:
        self.traced["step"] += 1
        return super().step(state, frozen, batch, key)


@pytest.mark.parametrize("fsdp", [1, 2])
def test_a_checked_step_is_not_traced_again_to_be_compiled(fsdp: int) -> None:
    made = config(mesh__data=2, mesh__fsdp=fsdp)
    task, feed, mesh = Counted(made), Feed(), sharding.from_config(made)
    chunk, n = feed.chunk(0, 2)
    batch = jax.eval_shape(feed.batch, chunk, np.int32(0), jax.random.key(0))
    shapes = tracing.init_shapes(task, {})
    after, metrics = tracing.step_shapes(task, shapes, {}, batch, mesh)
    assert jax.tree.structure(after) == jax.tree.structure(shapes)
    state = start.fresh(task, 0, {}, mesh)
    runner = StepRunner(task, feed, 0, {}, mesh)
    runner.compile(state, chunk)
    _, rows = runner(state, chunk, n)
    assert set(rows) == set(metrics)
    assert task.traced == {"init": 1, "step": 1}
