"""Laws of metrics: pairs of a sum and its weight, which add up over the parts of a batch."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from archirf_jax.objectives import metrics

RANDOM = np.random.default_rng(0)
VALUES, TIMES = RANDOM.normal(size=(2, 64)).astype(np.float32)
TIMES = np.abs(TIMES) % 1


def test_quarters_of_time_hold_the_sums_and_counts_of_their_values_and_both_ends() -> None:
    t = np.append(TIMES, [0, 0.25, 0.5, 0.75, 1]).astype(np.float32)
    values = np.append(VALUES, np.ones(5)).astype(np.float32)
    found = metrics.by_time(jnp.asarray(values), jnp.asarray(t), "error")
    assert list(found) == ["error/0_0.25", "error/0.25_0.5", "error/0.5_0.75", "error/0.75_1"]
    quarter = np.minimum(np.floor(4 * t), 3)
    for i, pair in enumerate(found.values()):
        np.testing.assert_allclose(pair, [values[quarter == i].sum(), np.sum(quarter == i)], rtol=1e-5)


def test_an_empty_quarter_has_no_weight() -> None:
    found = metrics.by_time(jnp.ones(3), jnp.full(3, 0.1))
    np.testing.assert_array_equal(np.stack(list(found.values())), [[3, 3], [0, 0], [0, 0], [0, 0]])


def test_pairs_of_equal_parts_add_up_to_the_mean_of_the_whole() -> None:
    whole, *parts = (metrics.mean(jnp.asarray(v)) for v in (VALUES, VALUES[::2], VALUES[1::2]))
    added = sum(np.asarray(part) for part in parts)
    np.testing.assert_allclose(added[0] / added[1], whole[0] / whole[1], rtol=1e-5)
    np.testing.assert_allclose(whole[0], VALUES.mean(), rtol=1e-5)


def test_diagnostics_are_the_scalars_alone() -> None:
    extras = {"attention_logit": jnp.bfloat16(3.5), "log_variance": jnp.zeros(4), "features": jnp.zeros((4, 2))}
    found = metrics.diagnostics(extras)
    assert set(found) == {"attention_logit"} and found["attention_logit"].dtype == jnp.float32
    np.testing.assert_array_equal(found["attention_logit"], [3.5, 1])
