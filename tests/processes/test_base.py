"""Laws of dropping conditions: how often, all leaves of an example together, never at 0 and always at 1."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from archirf_jax.processes.base import drop_condition, expand

B = 4000
TREE = {"tokens": np.ones((B, 3, 2), np.float32), "pooled": np.ones((B, 5), np.float32), "label": np.ones(B, np.int32)}
NULL = {"tokens": np.zeros((3, 2), np.float32), "pooled": np.zeros(5, np.float32), "label": np.int32(0)}


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_conditions_are_dropped_at_the_stated_rate(probability: float) -> None:
    y = drop_condition(jax.random.key(0), np.arange(B, dtype=np.int32), np.int32(-1), probability)
    dropped = int(np.sum(np.asarray(y) == -1))
    assert scipy.stats.binomtest(dropped, B, probability).pvalue > 1e-3
    assert y.dtype == jnp.int32


def test_one_coin_an_example_falls_for_all_its_leaves() -> None:
    y = jax.tree.map(np.asarray, drop_condition(jax.random.key(0), TREE, NULL, 0.5))
    kept = y["label"] == 1
    assert 0.4 < kept.mean() < 0.6
    for name in TREE:
        np.testing.assert_array_equal(y[name], np.where(kept.reshape(-1, *[1] * (y[name].ndim - 1)), TREE[name], 0))


def test_a_kept_example_keeps_its_own_condition() -> None:
    y = np.asarray(drop_condition(jax.random.key(0), np.arange(B), -1, 0.5))
    kept = y != -1
    np.testing.assert_array_equal(y[kept], np.arange(B)[kept])


def test_the_null_twin_may_differ_from_example_to_example() -> None:
    null = -np.arange(1, B + 1)
    y = np.asarray(drop_condition(jax.random.key(0), np.arange(B), null, 0.5))
    np.testing.assert_array_equal(y, np.where(y < 0, null, np.arange(B)))


@pytest.mark.parametrize(("probability", "survivors"), [(0, B), (0.0, B), (1, 0), (1.0, 0)])
def test_probability_zero_keeps_all_and_one_keeps_none(probability: float, survivors: int) -> None:
    y = drop_condition(jax.random.key(0), TREE, NULL, probability)
    for leaf in jax.tree.leaves(y):
        assert np.asarray(leaf).reshape(B, -1).all(axis=1).sum() == survivors


def test_expanded_values_broadcast_along_the_batch_alone() -> None:
    like = jnp.zeros((3, 2, 2, 1))
    expanded = expand(jnp.asarray([1.0, 2.0, 3.0]), like)
    assert expanded.shape == (3, 1, 1, 1)
    np.testing.assert_array_equal((like + expanded)[:, 1, 0, 0], [1, 2, 3])
