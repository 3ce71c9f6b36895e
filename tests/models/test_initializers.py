"""Laws of what parameters begin with: the published distributions, and shapes that are still checked at each use."""

from __future__ import annotations

import math
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archirf_jax.models import initializers
from archirf_jax.models.linear import Dense

SHAPE = (3, 3, 40, 60)  # a kernel of a convolution: 360 numbers lead in, 540 out
DEVIATIONS = {
    "xavier": math.sqrt(2 / (360 + 540)),
    "lecun": math.sqrt(1 / 360),
    "kaiming": math.sqrt(2 / 360),
    "uniform": math.sqrt(1 / (3 * 360)),
    "small_normal": 0.02,
    "unit_normal": 1.0,
}


@pytest.mark.parametrize("name", DEVIATIONS)
def test_values_are_drawn_around_0_as_widely_as_their_name_says(name: str) -> None:
    values = np.asarray(getattr(initializers, name)(jax.random.key(0), SHAPE))
    assert values.dtype == np.float32 and abs(values.mean()) < 4 * values.std() / math.sqrt(values.size)
    assert values.std() == pytest.approx(DEVIATIONS[name], rel=0.02)
    if name in ("uniform", "xavier"):  # of a uniform distribution the largest is sqrt(3) deviations away
        assert np.abs(values).max() == pytest.approx(math.sqrt(3) * DEVIATIONS[name], rel=0.01)


def test_constants_have_the_type_that_is_asked_for() -> None:
    for name, value in (("zeros", 0), ("ones", 1)):
        found = getattr(initializers, name)(jax.random.key(0), (2, 3), jnp.bfloat16)
        assert found.dtype == jnp.bfloat16 and np.all(np.asarray(found, np.float32) == value)


@pytest.mark.parametrize("module", [Dense(4), nn.LayerNorm()])
def test_a_parameter_of_another_shape_is_refused_after_a_right_one_was_used(module: Any) -> None:
    x = np.zeros((2, 3), np.float32)
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape), jax.eval_shape(module.init, jax.random.key(0), x))
    for _ in range(2):
        jax.eval_shape(module.apply, params, x)
    wide = jax.tree.map(lambda leaf: np.zeros((*leaf.shape[:-1], leaf.shape[-1] + 1)), params)
    with pytest.raises(flax.errors.ScopeParamShapeError):
        jax.eval_shape(module.apply, wide, x)
