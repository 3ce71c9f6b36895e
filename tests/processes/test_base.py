"""Laws of every process: its clock, its one loss, what the network is told, and what is drawn independently."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from archirf_jax.errors import UserError
from archirf_jax.processes.base import Process, drop_condition, expand
from archirf_jax.processes.ddpm import DDPM
from archirf_jax.processes.edm import EDM
from archirf_jax.processes.rectified_flow import RectifiedFlow
from tests.processes.examples import CLOCKS, Spy, every_clock, every_learner, images, knows

pytestmark = pytest.mark.usefixtures("float64")
TIMES: Any = np.linspace(0, 1, 64)
X0 = images(64)
Y = np.arange(64, dtype=np.int32) % 5
NULL = np.int32(5)
KINDS = pytest.mark.parametrize("kind", [RectifiedFlow, DDPM, EDM])


def tall(values: Any) -> Any:
    """(B,) to broadcast against images."""
    return values[:, None, None, None]


@every_clock
def test_the_path_starts_at_the_data_and_noise_gains_on_it_at_every_time(process: Process) -> None:
    assert process.alpha(TIMES)[0] == 1 and process.sigma(TIMES)[0] == 0
    assert np.all(np.diff(process.alpha(TIMES)) <= 0) and np.all(np.diff(process.sigma(TIMES)) > 0)
    assert np.all(np.diff(process.flow_time(TIMES)) > 0)
    assert process.flow_time(TIMES)[0] == 0 and process.flow_time(TIMES)[-1] <= 1


@every_clock
def test_the_ratio_and_the_flow_time_are_what_they_say(process: Process) -> None:
    alpha, sigma = process.alpha(TIMES), process.sigma(TIMES)
    np.testing.assert_allclose(process.ratio(TIMES[:-1]), sigma[:-1] / alpha[:-1], rtol=1e-13)
    np.testing.assert_allclose(process.flow_time(TIMES), sigma / (alpha + sigma), rtol=1e-13)


@every_clock
def test_every_process_is_a_straight_line_in_its_flow_time(process: Process) -> None:
    x0, eps = images(64), np.random.default_rng(1).normal(size=images(64).shape)
    tau: Any = process.flow_time(TIMES)
    straight = process.noised(x0, eps, TIMES) / tall(process.alpha(TIMES) + process.sigma(TIMES))
    np.testing.assert_allclose(straight, tall(1 - tau) * x0 + tall(tau) * eps, atol=1e-12)


@every_clock
def test_the_time_of_a_ratio_is_the_inverse_of_the_ratio(process: Process) -> None:
    np.testing.assert_allclose(process.time_of_ratio(process.ratio(TIMES[:-1])), TIMES[:-1], atol=1e-9)


@every_clock
def test_the_network_is_told_rising_times_that_can_be_told_back(process: Process) -> None:
    told = process.network_time(TIMES[1:])
    assert np.all(np.diff(told) > 0)
    np.testing.assert_allclose(process.time(told), TIMES[1:], atol=1e-12)


@every_clock
def test_host_and_device_agree_and_the_device_in_both_precisions(process: Process) -> None:
    t = TIMES[1:-1]
    for name in ("alpha", "sigma", "ratio", "flow_time", "network_time"):
        on_host = getattr(process, name)(t)
        assert isinstance(on_host, np.ndarray) and on_host.dtype == np.float64
        for dtype, rtol in ((jnp.float64, 1e-12), (jnp.float32, 2e-3)):
            on_device = getattr(process, name)(jnp.asarray(t, dtype))
            assert on_device.dtype == dtype
            np.testing.assert_allclose(on_device, on_host, rtol=rtol, atol=2e-4 if dtype == jnp.float32 else 1e-12)


@every_learner
def test_the_network_that_knows_x0_has_no_loss(process: Process) -> None:
    losses, aux = process.loss(jax.random.key(0), knows(process, X0), X0, Y, NULL)
    assert losses.shape == aux["t"].shape == aux["raw"].shape == (len(X0),)
    np.testing.assert_allclose(losses, 0, atol=1e-9)


@every_learner
def test_the_network_that_knows_x0_predicts_image_and_noise(process: Process) -> None:
    eps = np.random.default_rng(1).normal(size=X0.shape)
    t = jnp.linspace(0.02, 0.98, len(X0))
    prediction = process.predict(knows(process, X0), process.noised(X0, eps, t), t, Y)
    np.testing.assert_allclose(prediction.x0, X0, atol=1e-9)
    np.testing.assert_allclose(prediction.eps, eps, atol=1e-9)


@every_learner
def test_whatever_the_network_says_its_image_and_noise_make_up_its_input(process: Process) -> None:
    said = np.random.default_rng(1).normal(size=(64, 2, 3, process.output_channels(2)))
    t = jnp.linspace(0.02, 0.98, len(X0))
    prediction = process.predict(lambda x, t, y: jnp.asarray(said), X0, t, Y)
    np.testing.assert_allclose(process.noised(*prediction[:2], t), X0, atol=1e-9)


@every_learner
def test_the_target_of_what_a_network_means_is_what_it_said(process: Process) -> None:
    said = np.random.default_rng(1).normal(size=X0.shape)
    t = jnp.linspace(0.02, 0.98, len(X0))
    prediction = process.interpret(jnp.asarray(said), jnp.asarray(X0), t)
    np.testing.assert_allclose(process.target(prediction.x0, prediction.eps, t), said, atol=1e-8)


@KINDS
def test_the_loss_is_the_mean_square_of_the_error_of_each_example(kind: type[Process]) -> None:
    error = np.random.default_rng(1).normal(size=X0.shape)
    losses, aux = kind().loss(jax.random.key(0), knows(kind(), X0, error), X0, Y, NULL)
    np.testing.assert_allclose(losses, np.mean(error**2, axis=(1, 2, 3)), rtol=1e-9)
    np.testing.assert_array_equal(losses, aux["raw"])


@KINDS
def test_training_stays_in_single_precision_and_precise(kind: type[Process]) -> None:
    with jax.enable_x64(False):
        x0 = jnp.asarray(X0, jnp.float32)
        loss = jax.jit(lambda key: kind().loss(key, knows(kind(), x0, 1.0), x0, Y, NULL))
        losses, aux = loss(jax.random.key(0))
        assert losses.dtype == aux["t"].dtype == jnp.float32
        np.testing.assert_allclose(losses, 1, rtol=2e-3)


@dataclasses.dataclass(frozen=True)
class Remembering(RectifiedFlow):
    """Draws the times that it remembers, with weights 2."""

    def sample_times(self, key: jax.Array, batch: int, memory: Any = ()) -> tuple[jax.Array, jax.Array]:
        return memory, jnp.full(batch, 2.0)


def test_times_come_from_the_memory_and_their_weights_stay_out_of_the_raw_loss() -> None:
    t = jnp.linspace(0.1, 0.9, 64)
    process = Remembering()
    losses, aux = process.loss(jax.random.key(0), Spy(process), X0, Y, NULL, t)
    np.testing.assert_array_equal(aux["t"], t)
    np.testing.assert_allclose(losses, 2 * aux["raw"])
    assert np.all(aux["raw"] > 0)


@KINDS
def test_a_process_remembers_nothing_and_knows_no_uncertainty_unless_told_to(kind: type[Process]) -> None:
    process = kind()
    assert process.init_memory() == () and process.remember((), {"raw": jnp.ones(3), "t": jnp.ones(3)}) == ()
    assert process.uncertainty_head() == {}


@every_learner
def test_the_network_is_told_the_network_time_and_input_of_the_draw(process: Process) -> None:
    spy = Spy(process)
    _, aux = process.loss(jax.random.key(0), spy, X0, Y, NULL)
    told = spy.x, spy.t
    np.testing.assert_allclose(told[1], process.network_time(aux["t"]), rtol=1e-9)
    x = told[0] / process.network_input(jnp.ones_like(told[0]), aux["t"])
    process.predict(spy, x, aux["t"], Y)
    np.testing.assert_allclose(spy.x, told[0], rtol=1e-12)
    np.testing.assert_array_equal(spy.t, told[1])


@KINDS
def test_the_loss_can_be_compiled_and_gives_the_same(kind: type[Process]) -> None:
    process = kind()
    compiled = jax.jit(lambda key: process.loss(key, Spy(process), X0, Y, NULL)[0])(jax.random.key(3))
    np.testing.assert_allclose(compiled, process.loss(jax.random.key(3), Spy(process), X0, Y, NULL)[0], rtol=1e-9)


@pytest.mark.parametrize(
    "process", [RectifiedFlow(), DDPM(), DDPM(variance="learned_range"), EDM(), EDM(uncertainty=True)]
)
def test_a_network_with_other_channels_is_refused_in_training_and_sampling(process: Process) -> None:
    """With one channel of the image two of the network would broadcast."""

    def wrong(x: jax.Array, t: jax.Array, y: Any) -> jax.Array:
        return jnp.concatenate([x] * (3 - process.output_channels(1)), axis=-1)

    grey, t = X0[..., :1], jnp.full(len(X0), 0.5)
    with pytest.raises(UserError, match="model.learn_sigma"):
        process.loss(jax.random.key(0), wrong, grey, Y, NULL)
    with pytest.raises(UserError, match=f"gives {3 - process.output_channels(1)} channels for images of 1"):
        process.predict(wrong, grey, t, Y)


@pytest.mark.parametrize("t", [1.0, 0.3])
@pytest.mark.parametrize("name", ["linear", "vp", "scaled_linear", "edm"])
def test_the_prior_is_normal_and_as_large_as_the_noise(name: str, t: float) -> None:
    process = CLOCKS[name]
    prior = process.prior(jax.random.key(0), (10, 20, 20), t)
    assert prior.shape == (10, 20, 20)
    assert scipy.stats.kstest(np.ravel(prior) / process.sigma(np.asarray(t)), "norm").pvalue > 1e-3
    if t == 1:
        np.testing.assert_array_equal(process.prior(jax.random.key(0), (10, 20, 20)), prior)


def drawn(process: Process, x0: Any, key: jax.Array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """t (B,), eps (B, H, W, C) and who was dropped (B,), from one evaluation of the loss."""
    spy = Spy(process)
    _, aux = process.loss(key, spy, jnp.asarray(x0), np.zeros(len(x0), np.int32), np.int32(1))
    x = spy.x / process.network_input(jnp.ones_like(spy.x), aux["t"])
    eps = (x - tall(process.alpha(aux["t"])) * x0) / tall(process.sigma(aux["t"]))
    return np.asarray(aux["t"]), np.asarray(eps), np.asarray(spy.y) == 1


@KINDS
def test_times_noise_and_dropped_conditions_are_independent(kind: type[Process]) -> None:
    """With one pixel an image two draws from the same key would be the same numbers in another guise."""
    process = kind(condition_dropout=0.3)
    t, eps, dropped = drawn(process, np.zeros((4000, 1, 1, 1)), jax.random.key(0))
    eps = eps.ravel()
    assert scipy.stats.kstest(eps, "norm").pvalue > 1e-3
    assert scipy.stats.binomtest(int(dropped.sum()), len(dropped), 0.3).pvalue > 1e-3
    assert scipy.stats.spearmanr(t, eps).pvalue > 1e-3
    assert scipy.stats.ks_2samp(t[dropped], t[~dropped]).pvalue > 1e-3
    assert scipy.stats.ks_2samp(eps[dropped], eps[~dropped]).pvalue > 1e-3


@KINDS
def test_the_examples_of_a_batch_and_two_keys_draw_apart(kind: type[Process]) -> None:
    t, eps, _ = drawn(kind(), X0, jax.random.key(0))
    assert len(np.unique(t)) > 0.9 * len(t) and len(np.unique(eps.round(2), axis=0)) == len(eps)
    other_t, other_eps, _ = drawn(kind(), X0, jax.random.key(1))
    assert np.mean(t == other_t) < 0.1 and np.max(np.abs(eps - other_eps)) > 1
    again_t, again_eps, _ = drawn(kind(), X0, jax.random.key(0))
    np.testing.assert_array_equal(t, again_t)
    np.testing.assert_array_equal(eps, again_eps)


@KINDS
def test_conditions_reach_the_network_unless_dropped(kind: type[Process]) -> None:
    always, never = kind(condition_dropout=1), kind(condition_dropout=0)
    spy = Spy(always)
    never.loss(jax.random.key(0), spy, X0, {"label": Y}, {"label": NULL})
    np.testing.assert_array_equal(spy.y["label"], Y)
    always.loss(jax.random.key(0), spy, X0, {"label": Y}, {"label": NULL})
    np.testing.assert_array_equal(spy.y["label"], np.full_like(Y, NULL))
    always.predict(spy, X0, jnp.full(len(X0), 0.5), {"label": Y})
    np.testing.assert_array_equal(spy.y["label"], Y)


B = 4000
TREE = {"tokens": np.ones((B, 3, 2), np.float32), "pooled": np.ones((B, 5), np.float32), "label": np.ones(B, np.int32)}
ZEROS = {"tokens": np.zeros((3, 2), np.float32), "pooled": np.zeros(5, np.float32), "label": np.int32(0)}


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_conditions_are_dropped_at_the_stated_rate(probability: float) -> None:
    y = drop_condition(jax.random.key(0), np.arange(B, dtype=np.int32), np.int32(-1), probability)
    dropped = int(np.sum(np.asarray(y) == -1))
    assert scipy.stats.binomtest(dropped, B, probability).pvalue > 1e-3
    assert y.dtype == jnp.int32


def test_one_coin_an_example_falls_for_all_its_leaves() -> None:
    y = jax.tree.map(np.asarray, drop_condition(jax.random.key(0), TREE, ZEROS, 0.5))
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
    y = drop_condition(jax.random.key(0), TREE, ZEROS, probability)
    for leaf in jax.tree.leaves(y):
        assert np.asarray(leaf).reshape(B, -1).all(axis=1).sum() == survivors


def test_expanded_values_broadcast_along_the_batch_alone() -> None:
    like = jnp.zeros((3, 2, 2, 1))
    expanded = expand(jnp.asarray([1.0, 2.0, 3.0]), like)
    assert expanded.shape == (3, 1, 1, 1)
    np.testing.assert_array_equal((like + expanded)[:, 1, 0, 0], [1, 2, 3])


@KINDS
@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_a_dropout_out_of_range_is_named_with_its_value(kind: type[Process], value: float) -> None:
    with pytest.raises(UserError, match=rf"config\.process\.condition_dropout: {value}"):
        kind(condition_dropout=value)
