"""Schedules hit their corners, decay spares what it should, and the average forgets the start."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archirf_jax.errors import UserError
from archirf_jax.training import ema
from archirf_jax.training.optimizers import make_optimizer, make_schedule
from configs import default


def config(**changes: Any) -> Any:
    made = default.get_config()
    made.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return made


def test_warmup_rises_by_equal_steps_from_a_first_step_that_moves() -> None:
    schedule = make_schedule(config(schedule__warmup_steps=4, optimizer__learning_rate=0.4))
    np.testing.assert_allclose([schedule(i) for i in range(7)], [0.1, 0.2, 0.3, 0.4, 0.4, 0.4, 0.4], rtol=1e-6)


@pytest.mark.parametrize("warmup", [0, 1])
def test_without_warmup_the_first_step_has_the_peak(warmup: int) -> None:
    schedule = make_schedule(config(schedule__warmup_steps=warmup, optimizer__learning_rate=0.4))
    np.testing.assert_allclose([schedule(i) for i in range(3)], 0.4, rtol=1e-6)


def test_cosine_falls_from_the_peak_to_zero_at_the_last_step() -> None:
    made = config(schedule__name="cosine", schedule__warmup_steps=10, steps=110, optimizer__learning_rate=1.0)
    schedule = make_schedule(made)
    expected = [0.5 * (1 + np.cos(np.pi * i / 100)) for i in (0, 25, 50, 100)]
    np.testing.assert_allclose([schedule(10 + i) for i in (0, 25, 50, 100)], expected, atol=1e-6)


def test_wrong_names_and_a_warmup_longer_than_the_run_are_refused() -> None:
    with pytest.raises(UserError, match="schedule.name"):
        make_schedule(config(schedule__name="exponential"))
    with pytest.raises(UserError, match="warmup_steps"):
        make_schedule(config(schedule__name="cosine", schedule__warmup_steps=100, steps=100))
    with pytest.raises(UserError, match="optimizer.name"):
        made = config(optimizer__name="sgd")
        make_optimizer(made, make_schedule(made))


def test_weight_decay_touches_kernels_only() -> None:
    made = config(optimizer__weight_decay=0.5, optimizer__learning_rate=0.1, schedule__warmup_steps=0)
    optimizer = make_optimizer(made, make_schedule(made))
    params = {
        "layer": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones((2, 2))},
        "table": {"embedding": jnp.ones(2)},
        "weight": jnp.ones(2),
    }
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    np.testing.assert_allclose(updates["layer"]["kernel"], -0.05, rtol=1e-6)
    updates["layer"].pop("kernel")
    assert len(jax.tree.leaves(updates)) == 3 and not any(np.any(leaf) for leaf in jax.tree.leaves(updates))


def test_clipping_makes_the_step_independent_of_the_gradients_length() -> None:
    def first_moment(scale: float, clip: float) -> float:
        made = config(optimizer__clip_norm=clip)
        optimizer = make_optimizer(made, make_schedule(made))
        params = {"kernel": jnp.zeros(4)}
        _, state = optimizer.update({"kernel": jnp.full(4, scale)}, optimizer.init(params), params)
        moments = [leaf for leaf in jax.tree.leaves(state) if getattr(leaf, "shape", None) == (4,)]
        return float(jnp.linalg.norm(moments[0]))

    assert first_moment(100.0, 1.0) == pytest.approx(0.1, rel=1e-5)
    assert first_moment(100.0, 0.0) == pytest.approx(20.0, rel=1e-5)


def test_the_average_follows_its_formula_and_never_remembers_more_than_its_decay() -> None:
    average, expected = jnp.float32(5.0), 5.0
    values = np.random.default_rng(0).normal(size=200)
    for step, value in enumerate(values):
        average = ema.update(average, jnp.float32(value), ema.warmed(0.9)(jnp.int32(step)))
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    assert float(average) == pytest.approx(expected, abs=1e-5)
