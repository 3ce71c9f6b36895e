"""Laws of the rectified flow: the straight path, its velocity, the times, and the independence of what is drawn."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from archirf_jax import processes, registry
from archirf_jax.errors import UserError
from archirf_jax.processes.base import ModelFn
from archirf_jax.processes.rectified_flow import RectifiedFlow, shift_time

RANDOM = np.random.default_rng(0)
X0: Any = RANDOM.uniform(-1, 1, size=(64, 2, 3, 2)).astype(np.float32)
Y = np.arange(64, dtype=np.int32) % 5
NULL = np.int32(5)
# One pixel an image: many draws for little work.
TINY: Any = np.linspace(-1, 1, 4000, dtype=np.float32).reshape(-1, 1, 1, 1)


def knows(x0: Any, time_scale: float = 1000.0, error: Any = 0.0) -> ModelFn:
    """The network that knows x0 and reads eps off x_t = (1 - t) x0 + t eps; it answers eps - x0 + error."""

    def oracle(x: jax.Array, t: jax.Array, y: Any) -> jax.Array:
        tt = (t / time_scale)[:, None, None, None]
        return (x - (1 - tt) * x0) / tt - x0 + error

    return oracle


class Spy:
    """A network that says 0 and remembers what it was told."""

    def __call__(self, x: jax.Array, t: jax.Array, y: Any) -> jax.Array:
        self.x, self.t, self.y = x, t, y
        return jnp.zeros_like(x)


def drawn(process: RectifiedFlow, x0: Any, key: jax.Array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """t (B,), eps (B, H, W, C) and who was dropped (B,), from one evaluation of the loss."""
    spy = Spy()
    _, aux = process.loss(key, spy, x0, np.zeros(len(x0), np.int32), np.int32(1))
    t = np.asarray(aux["t"], np.float64)
    tt = t[:, None, None, None]
    return t, (np.asarray(spy.x) - (1 - tt) * x0) / tt, np.asarray(spy.y) == 1


@pytest.mark.parametrize("fields", [{}, {"time_distribution": "uniform"}, {"shift": 3.0, "time_scale": 1.0}])
def test_the_loss_of_the_network_that_knows_x0_is_zero(fields: dict[str, Any]) -> None:
    process = RectifiedFlow(**fields)
    losses, _ = process.loss(jax.random.key(0), knows(X0, process.time_scale), X0, Y, NULL)
    assert losses.shape == (len(X0),)
    np.testing.assert_allclose(losses, 0, atol=1e-6)


def test_the_loss_is_the_mean_square_of_the_velocity_error_of_each_example() -> None:
    error = RANDOM.normal(size=X0.shape).astype(np.float32)
    losses, _ = RectifiedFlow().loss(jax.random.key(0), knows(X0, error=error), X0, Y, NULL)
    np.testing.assert_allclose(losses, np.mean(error.astype(np.float64) ** 2, axis=(1, 2, 3)), rtol=1e-3)


def test_the_loss_of_a_silent_network_is_the_mean_square_of_the_velocity() -> None:
    """eps is standard normal, so |eps - x0|^2 is 1 + x0^2 on average, with variance 2 + 4 x0^2."""
    losses, _ = RectifiedFlow().loss(jax.random.key(0), Spy(), TINY, np.zeros(len(TINY), np.int32), np.int32(1))
    square = TINY.astype(np.float64) ** 2
    standard_error = np.sqrt(np.sum(2 + 4 * square)) / len(TINY)
    assert abs(np.mean(losses) - np.mean(1 + square)) < 4 * standard_error


def test_the_network_is_told_the_scaled_times_of_the_draw() -> None:
    spy = Spy()
    _, aux = RectifiedFlow(time_scale=7.0).loss(jax.random.key(0), spy, X0, Y, NULL)
    np.testing.assert_allclose(spy.t, 7 * aux["t"], rtol=1e-6)
    RectifiedFlow(time_scale=7.0).predict(spy, X0, aux["t"], Y)
    np.testing.assert_allclose(spy.t, 7 * aux["t"], rtol=1e-6)


def test_the_loss_can_be_compiled_and_gives_the_same() -> None:
    process = RectifiedFlow()
    compiled = jax.jit(lambda key: process.loss(key, Spy(), X0, Y, NULL)[0])(jax.random.key(3))
    np.testing.assert_allclose(compiled, process.loss(jax.random.key(3), Spy(), X0, Y, NULL)[0], rtol=1e-5)


def test_a_prediction_is_the_truth_for_the_network_that_knows_x0() -> None:
    eps = RANDOM.normal(size=X0.shape).astype(np.float32)
    t = np.linspace(0.05, 1, len(X0), dtype=np.float32)
    tt = t[:, None, None, None]
    x = jnp.asarray((1 - tt) * X0 + tt * eps)
    prediction = RectifiedFlow().predict(knows(X0), x, jnp.asarray(t), Y)
    np.testing.assert_allclose(prediction.x0, X0, atol=1e-5)
    np.testing.assert_allclose(prediction.eps, eps, atol=1e-4)
    np.testing.assert_allclose(prediction.v, eps - X0, atol=1e-4)


def test_a_prediction_is_consistent_whatever_the_network_says() -> None:
    v = RANDOM.normal(size=X0.shape).astype(np.float32)
    t = np.linspace(0, 1, len(X0), dtype=np.float32)
    tt = t[:, None, None, None]
    prediction = RectifiedFlow().predict(lambda x, t, y: jnp.asarray(v), X0, jnp.asarray(t), Y)
    np.testing.assert_array_equal(prediction.v, v)
    np.testing.assert_allclose((1 - tt) * prediction.x0 + tt * prediction.eps, X0, atol=1e-6)
    np.testing.assert_allclose(prediction.eps - prediction.x0, v, atol=1e-6)


def test_a_network_that_learns_sigma_is_refused_in_training_and_sampling() -> None:
    """With one channel of the image two of the network would broadcast."""

    def doubled(x: jax.Array, t: jax.Array, y: Any) -> jax.Array:
        return jnp.concatenate([x, x], axis=-1)

    grey = X0[..., :1]
    with pytest.raises(UserError, match="model.learn_sigma"):
        RectifiedFlow().loss(jax.random.key(0), doubled, grey, Y, NULL)
    with pytest.raises(UserError, match="model.learn_sigma"):
        RectifiedFlow().predict(doubled, grey, jnp.zeros(len(grey)), Y)


@pytest.mark.parametrize(("mean", "std", "shift"), [(0.0, 1.0, 1.0), (-0.6, 1.6, 1.0), (0.5, 0.7, 3.0)])
def test_logit_normal_times_have_the_stated_logit_mean_and_deviation(mean: float, std: float, shift: float) -> None:
    t = np.asarray(RectifiedFlow(logit_mean=mean, logit_std=std, shift=shift).sample_times(jax.random.key(0), 4000))
    logit = scipy.special.logit(t.astype(np.float64))
    # A shift multiplies the odds t / (1 - t), so it adds to their logarithm.
    assert scipy.stats.kstest((logit - mean - np.log(shift)) / std, "norm").pvalue > 1e-3


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_uniform_times_are_uniform_before_the_shift(shift: float) -> None:
    t = RectifiedFlow(time_distribution="uniform", shift=shift).sample_times(jax.random.key(0), 4000)
    assert np.min(t) >= 0 and np.max(t) <= 1
    assert scipy.stats.kstest(np.asarray(shift_time(t, 1 / shift)), "uniform").pvalue > 1e-3


SHIFTS = [0.1, 0.3, 1.0, 3.0, 7.3, 1000.0]
TIMES = np.linspace(0, 1, 101)


@pytest.mark.parametrize("shift", SHIFTS)
def test_the_shift_keeps_the_ends_and_the_order_of_times(shift: float) -> None:
    moved = shift_time(TIMES, shift)
    assert moved[0] == 0 and moved[-1] == 1
    assert np.all(np.diff(moved) > 0)
    single = np.asarray(shift_time(jnp.asarray(TIMES, jnp.float32), shift))
    assert single[0] == 0 and single[-1] == 1
    assert np.all((moved >= TIMES) if shift >= 1 else (moved <= TIMES))


@pytest.mark.parametrize("shift", SHIFTS)
def test_the_inverse_shift_takes_times_back(shift: float) -> None:
    np.testing.assert_allclose(shift_time(shift_time(TIMES, shift), 1 / shift), TIMES, atol=1e-12)


@pytest.mark.parametrize("shift", SHIFTS)
def test_the_shift_is_equation_23_of_sd3(shift: float) -> None:
    np.testing.assert_allclose(shift_time(TIMES, shift), shift * TIMES / (1 + (shift - 1) * TIMES), rtol=1e-12)
    assert np.all(shift_time(TIMES, 1.0) == TIMES)


def test_the_noise_and_the_prior_are_standard_normal() -> None:
    _, eps, _ = drawn(RectifiedFlow(), TINY, jax.random.key(0))
    prior = RectifiedFlow().prior(jax.random.key(0), (10, 20, 3))
    assert prior.shape == (10, 20, 3)
    for noise in (eps, prior):
        assert scipy.stats.kstest(np.ravel(noise), "norm").pvalue > 1e-3


@pytest.mark.parametrize("time_distribution", ["uniform", "logit_normal"])
def test_times_noise_and_dropped_conditions_are_independent(time_distribution: str) -> None:
    """With one pixel an image two draws from the same key would be the same numbers in another guise."""
    process = RectifiedFlow(time_distribution=time_distribution, condition_dropout=0.3)
    t, eps, dropped = drawn(process, TINY, jax.random.key(0))
    eps = eps.ravel()
    assert scipy.stats.binomtest(int(dropped.sum()), len(dropped), 0.3).pvalue > 1e-3
    assert scipy.stats.spearmanr(t, eps).pvalue > 1e-3
    assert scipy.stats.ks_2samp(t[dropped], t[~dropped]).pvalue > 1e-3
    assert scipy.stats.ks_2samp(eps[dropped], eps[~dropped]).pvalue > 1e-3


def test_the_examples_of_a_batch_and_two_keys_draw_apart() -> None:
    t, eps, _ = drawn(RectifiedFlow(), X0, jax.random.key(0))
    assert len(np.unique(t)) == len(t) and len(np.unique(eps.round(5), axis=0)) == len(eps)
    other_t, other_eps, _ = drawn(RectifiedFlow(), X0, jax.random.key(1))
    assert not np.any(t == other_t) and np.max(np.abs(eps - other_eps)) > 1
    again_t, again_eps, _ = drawn(RectifiedFlow(), X0, jax.random.key(0))
    np.testing.assert_array_equal(t, again_t)
    np.testing.assert_array_equal(eps, again_eps)


def test_conditions_reach_the_network_unless_dropped() -> None:
    spy = Spy()
    RectifiedFlow(condition_dropout=0).loss(jax.random.key(0), spy, X0, {"label": Y}, {"label": NULL})
    np.testing.assert_array_equal(spy.y["label"], Y)
    RectifiedFlow(condition_dropout=1).loss(jax.random.key(0), spy, X0, {"label": Y}, {"label": NULL})
    np.testing.assert_array_equal(spy.y["label"], np.full_like(Y, NULL))
    RectifiedFlow(condition_dropout=1).predict(spy, X0, jnp.zeros(len(X0)), {"label": Y})
    np.testing.assert_array_equal(spy.y["label"], Y)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("time_distribution", "logitnormal"),
        ("logit_std", 0.0),
        ("logit_std", float("nan")),
        ("shift", 0.0),
        ("shift", -3.0),
        ("time_scale", 0.0),
        ("condition_dropout", -0.1),
        ("condition_dropout", 1.1),
        ("condition_dropout", float("nan")),
    ],
)
def test_a_field_out_of_range_is_named_with_its_value(field: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"process.{field}: .*{value}"):
        registry.build(processes, "process", "rectified_flow", {field: value})


def test_a_misspelt_time_distribution_brings_the_nearest_one() -> None:
    with pytest.raises(UserError, match="did you mean 'logit_normal'"):
        RectifiedFlow(time_distribution="logit-normal")
