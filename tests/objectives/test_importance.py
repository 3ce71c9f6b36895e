"""Laws of importance sampling: the ring of losses is a plain loop's, and probabilities follow their size."""

from __future__ import annotations

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archirf_jax.objectives import importance

record = jax.jit(importance.record)
probabilities = jax.jit(importance.probabilities)


def test_the_ring_keeps_the_latest_losses_of_each_time_however_they_repeat() -> None:
    random = np.random.default_rng(0)
    history = importance.init(5)
    latest: list[collections.deque[float]] = [collections.deque(maxlen=importance.HISTORY) for _ in range(5)]
    written = np.zeros(5, int)
    for batch in range(30):
        # Some batches are of one time alone, and so longer than the ring.
        index = random.integers(0, 5, 32) if batch % 3 else np.full(32, batch % 5)
        losses = random.exponential(size=32).astype(np.float32)
        history = record(history, jnp.asarray(index), jnp.asarray(losses))
        for i, loss in zip(index, losses, strict=True):
            latest[i].append(loss)
            written[i] += 1
        for row, expected in zip(np.asarray(history.losses), latest, strict=True):
            np.testing.assert_array_equal(np.sort(row), np.sort([*expected, *[0] * (10 - len(expected))]))
        np.testing.assert_array_equal(history.written, written)
    assert importance.HISTORY == 10


def filled(losses: np.ndarray) -> importance.LossHistory:
    """A history with these losses (n, HISTORY)."""
    history = importance.init(len(losses))
    for column in losses.T:
        history = record(history, jnp.arange(len(losses)), jnp.asarray(column, jnp.float32))
    return history


def test_probabilities_are_proportional_to_the_root_mean_square_with_a_uniform_share() -> None:
    losses = np.random.default_rng(0).exponential(size=(7, 10))
    size = np.sqrt(np.mean(losses**2, axis=1))
    p = np.asarray(probabilities(filled(losses)))
    np.testing.assert_allclose(p, 0.999 * size / size.sum() + 0.001 / 7, rtol=1e-5)
    assert p.sum() == pytest.approx(1, abs=1e-6)


def test_probabilities_are_uniform_until_every_time_has_all_its_losses() -> None:
    losses = np.random.default_rng(0).exponential(size=(7, 10))
    almost = filled(losses[:, :9])
    almost = record(almost, jnp.asarray([0, 1, 2, 3, 4, 5, 5]), jnp.ones(7))
    np.testing.assert_allclose(probabilities(importance.init(7)), 1 / 7, rtol=1e-6)
    np.testing.assert_allclose(probabilities(almost), 1 / 7, rtol=1e-6)
    full = record(almost, jnp.full(7, 6), jnp.ones(7))
    assert np.ptp(probabilities(full)) > 0.01


def test_weights_make_any_expectation_uniform() -> None:
    p = np.asarray(probabilities(filled(np.random.default_rng(0).exponential(size=(7, 10)))), np.float64)
    function = np.random.default_rng(1).normal(size=7)
    assert np.sum(p * function / (7 * p)) == pytest.approx(function.mean())


def test_no_time_is_forgotten_and_losses_of_zero_divide_nothing() -> None:
    losses = np.zeros((7, 10))
    p = np.asarray(probabilities(filled(losses)))
    assert np.all(np.isfinite(p)) and np.all(p > 0)
    losses[2] = 3
    expected = np.where(np.arange(7) == 2, 0.999, 0) + 0.001 / 7
    np.testing.assert_allclose(probabilities(filled(losses)), expected, rtol=1e-4)
