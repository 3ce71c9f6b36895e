"""Laws of dropped conditions: one coin an example and group, with the stated share, and nothing else changes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from archirf_jax.errors import UserError
from archirf_jax.objectives.dropping import check, drop, drops

B = 4000
KEY = jax.random.key(0)
CONDITION = {
    "tokens": jnp.ones((B, 3, 2)),
    "mask": jnp.ones((B, 3), bool),
    "pooled": jnp.ones((B, 5), jnp.bfloat16),
    "label": jnp.arange(1, B + 1, dtype=jnp.int32),
    "size": jnp.ones((B, 2)),  # without a null
}
NULL = {"tokens": jnp.zeros((3, 2)), "mask": jnp.zeros(3, bool), "pooled": jnp.zeros(5), "label": jnp.int32(0)}


def kept(condition: Any) -> dict[str, np.ndarray]:
    """Who kept what, (B,) of each key, once it is known that a value is either the own one or the null."""
    found = {}
    for name, value in condition.items():
        own = np.asarray(value == CONDITION[name]).reshape(B, -1)
        null = np.asarray(value == NULL[name]).reshape(B, -1) if name in NULL else ~own
        assert np.all(own.all(axis=1) ^ null.all(axis=1))
        assert value.dtype == CONDITION[name].dtype and value.shape == CONDITION[name].shape
        found[name] = own.all(axis=1)
    return found


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_one_coin_an_example_falls_for_all_that_may_be_dropped(probability: float) -> None:
    found = kept(drop(KEY, CONDITION, NULL, probability))
    assert scipy.stats.binomtest(int(np.sum(~found["label"])), B, probability).pvalue > 1e-3
    for name in NULL:
        np.testing.assert_array_equal(found[name], found["label"])
    assert np.all(found["size"])


def test_groups_are_dropped_together_with_shares_of_their_own_and_independently() -> None:
    found = kept(drop(KEY, CONDITION, NULL, {"tokens, mask": 0.3, "label": 0.6}))
    np.testing.assert_array_equal(found["tokens"], found["mask"])
    assert np.all(found["pooled"]) and np.all(found["size"])
    for name, share in (("tokens", 0.3), ("label", 0.6)):
        assert scipy.stats.binomtest(int(np.sum(~found[name])), B, share).pvalue > 1e-3
    both = np.sum(~found["tokens"] & ~found["label"])
    assert scipy.stats.binomtest(int(both), B, 0.3 * 0.6).pvalue > 1e-3


def test_the_same_key_gives_the_same_drops_and_another_one_others() -> None:
    for dropout in (0.5, {"label": 0.5, "tokens": 0.2}):
        first, again, other = (drop(jax.random.key(seed), CONDITION, NULL, dropout) for seed in (0, 0, 1))
        jax.tree.map(np.testing.assert_array_equal, first, again)
        assert np.mean(first["label"] == other["label"]) < 0.7
        compiled = jax.jit(lambda key, dropout=dropout: drop(key, CONDITION, NULL, dropout))(KEY)
        jax.tree.map(np.testing.assert_array_equal, first, compiled)


@pytest.mark.parametrize("dropout", [0, 0.0, {}, {"label": 0.0, "tokens,mask": 0}])
def test_probability_zero_is_the_identity(dropout: Any) -> None:
    found = drop(KEY, CONDITION, NULL, dropout)
    assert all(found[name] is CONDITION[name] for name in CONDITION) and set(found) == set(CONDITION)
    assert not drops(dropout)


@pytest.mark.parametrize("dropout", [1, 1.0, {"label,tokens,mask,pooled": 1}])
def test_probability_one_keeps_only_what_has_no_null(dropout: Any) -> None:
    found = kept(drop(KEY, CONDITION, NULL, dropout))
    assert {name for name in found if found[name].any()} == {"size"} and found["size"].all()
    assert drops(dropout)


def test_nothing_is_dropped_where_nothing_stands_for_none() -> None:
    for condition in ({}, {"size": CONDITION["size"]}):
        assert drop(KEY, condition, {}, 0.5) is condition


def test_what_a_group_cannot_drop_is_named() -> None:
    for name in ("size", "labels"):
        with pytest.raises(UserError) as caught:
            drop(KEY, CONDITION, NULL, {f"tokens,{name}": 0.1})
        assert (caught.value.field, caught.value.value) == ("objective.condition_dropout", name)


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_every_probability_lies_between_zero_and_one(value: float) -> None:
    for dropout in (value, {"label": 0.1, "tokens": value}):
        with pytest.raises(UserError) as caught:
            check(dropout)
        assert caught.value.field == "objective.condition_dropout" and caught.value.value is value
