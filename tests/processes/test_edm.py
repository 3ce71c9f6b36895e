"""Laws of EDM: the wrapper around the network is the paper's, its loss is the paper's loss, and sigma is log-normal."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from archirf_jax import processes, registry
from archirf_jax.errors import UserError
from archirf_jax.processes.edm import EDM
from tests.processes.examples import Spy, images, knows, within_error

pytestmark = pytest.mark.usefixtures("float64")
X0: Any = images(64)
EPS: Any = np.random.default_rng(1).normal(size=X0.shape)
F: Any = np.random.default_rng(2).normal(size=X0.shape)
Y = np.zeros(64, np.int32)
NULL = np.int32(1)
TIMES = np.linspace(0.001, 1.0, 64)
SIGMA_DATA = pytest.mark.parametrize("sigma_data", [0.5, 1.0])


def wrapper(sigma: Any, sigma_data: float) -> tuple[Any, Any, Any, Any]:
    """c_skip, c_out, c_in and c_noise of the paper's Table 1."""
    total = sigma**2 + sigma_data**2
    return sigma_data**2 / total, sigma * sigma_data / np.sqrt(total), 1 / np.sqrt(total), np.log(sigma) / 4


def noisy(process: EDM) -> tuple[Any, Any]:
    """x at TIMES, and its sigma."""
    sigma = process.sigma(TIMES)[:, None, None, None]
    return X0 + sigma * EPS, sigma


@SIGMA_DATA
@pytest.mark.parametrize("time_scale", [1.0, 250.0])
def test_the_denoiser_is_the_papers_wrapper_around_the_network(sigma_data: float, time_scale: float) -> None:
    process = EDM(sigma_data=sigma_data, time_scale=time_scale)
    x, sigma = noisy(process)
    c_skip, c_out, c_in, c_noise = wrapper(sigma, sigma_data)
    told: list[Any] = []

    def network(x: jax.Array, t: jax.Array, y: Any) -> jax.Array:
        told.extend((x, t))
        return jnp.asarray(F)

    prediction = process.predict(network, jnp.asarray(x), jnp.asarray(TIMES), Y)
    np.testing.assert_allclose(told[0], c_in * x, rtol=1e-9)
    np.testing.assert_allclose(told[1], time_scale * np.ravel(c_noise), rtol=1e-9)
    denoised = c_skip * x + c_out * F
    np.testing.assert_allclose(prediction.x0, denoised, rtol=1e-9)
    np.testing.assert_allclose(prediction.eps, (x - denoised) / sigma, rtol=1e-6, atol=1e-9)


@SIGMA_DATA
def test_the_target_is_what_the_wrapper_asks_of_the_network(sigma_data: float) -> None:
    process = EDM(sigma_data=sigma_data)
    x, sigma = noisy(process)
    c_skip, c_out, _, _ = wrapper(sigma, sigma_data)
    target = process.target(jnp.asarray(X0), jnp.asarray(EPS), jnp.asarray(TIMES))
    np.testing.assert_allclose(target, (X0 - c_skip * x) / c_out, rtol=1e-6)


@SIGMA_DATA
def test_input_and_target_have_variance_one_for_data_of_the_stated_deviation(sigma_data: float) -> None:
    process = EDM(sigma_data=sigma_data)
    x0 = sigma_data * np.random.default_rng(3).normal(size=(64, 200, 50, 1))
    eps = np.random.default_rng(4).normal(size=x0.shape)
    t = jnp.linspace(0.01, 1, 64)
    target = process.target(jnp.asarray(x0), jnp.asarray(eps), t)
    told = process.network_input(process.noised(jnp.asarray(x0), jnp.asarray(eps), t), t)
    # The variance of 10000 normal numbers is known to 1.4 percent.
    np.testing.assert_allclose(np.var(target, axis=(1, 2, 3)), 1, atol=0.07)
    np.testing.assert_allclose(np.var(told, axis=(1, 2, 3)), 1, atol=0.07)


@SIGMA_DATA
def test_the_loss_is_the_papers_weight_of_the_denoisers_square_error(sigma_data: float) -> None:
    process = EDM(sigma_data=sigma_data)
    losses, aux = process.loss(jax.random.key(0), knows(process, X0, error=F), X0, Y, NULL)
    sigma = np.asarray(process.sigma(aux["t"]))
    _, c_out, _, _ = wrapper(sigma[:, None, None, None], sigma_data)
    weight = (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2
    np.testing.assert_allclose(losses, weight * np.mean((c_out * F) ** 2, axis=(1, 2, 3)), rtol=1e-6)


@pytest.mark.parametrize(("log_mean", "log_std"), [(-1.2, 1.2), (-0.4, 1.0), (1.0, 0.5)])
def test_the_logarithm_of_sigma_is_normal_in_training(log_mean: float, log_std: float) -> None:
    process = EDM(log_mean=log_mean, log_std=log_std)
    t, weights = process.sample_times(jax.random.key(0), 4000)
    log_sigma = np.log(np.asarray(process.sigma(t), np.float64))
    assert scipy.stats.kstest((log_sigma - log_mean) / log_std, "norm").pvalue > 1e-3
    np.testing.assert_array_equal(weights, 1)


@pytest.mark.parametrize("sigma_max", [80.0, 10.0])
def test_sigma_runs_from_zero_to_its_largest(sigma_max: float) -> None:
    process = EDM(sigma_max=sigma_max)
    assert process.sigma(np.asarray(0.0)) == 0
    assert process.sigma(np.asarray(1.0)) == pytest.approx(sigma_max, rel=1e-12)
    assert process.sigma(jnp.asarray(1.0)) == pytest.approx(sigma_max, rel=1e-5)
    sigma = np.geomspace(1e-4, 10 * sigma_max, 50)  # training goes beyond the largest that is sampled
    np.testing.assert_allclose(process.sigma(process.time_of_ratio(sigma)), sigma, rtol=1e-9)
    np.testing.assert_allclose(process.time(np.log(sigma) / 4), process.time_of_ratio(sigma), rtol=1e-9)
    np.testing.assert_allclose(process.time_of_ratio(sigma), sigma / (1 + sigma) * (1 + sigma_max) / sigma_max)


def test_the_prior_has_the_largest_sigma() -> None:
    prior = np.ravel(EDM().prior(jax.random.key(0), (100, 40)))
    assert scipy.stats.kstest(prior / 80, "norm").pvalue > 1e-3


def uncertain(u: Any, error: float = 1.5) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss of a network with a constant error that answers u (B,) for the logarithm of its expected loss."""
    process = EDM(uncertainty=True)

    def network(x: jax.Array, t: jax.Array, y: Any) -> jax.Array:
        answer = knows(EDM(), X0, error)(x, t, y)
        return jnp.concatenate([answer, jnp.broadcast_to(u[:, None, None, None], (*x.shape[:-1], 1))], axis=-1)

    return process.loss(jax.random.key(0), network, X0, Y, NULL)


def test_the_uncertainty_that_loses_least_is_the_logarithm_of_the_square_error() -> None:
    u = jnp.linspace(-3, 3, 64)
    losses, aux = uncertain(u)
    np.testing.assert_allclose(losses, 1.5**2 / np.exp(u) + u, rtol=1e-9)
    np.testing.assert_allclose(aux["uncertainty"], u, rtol=1e-9)
    slope = jax.jit(jax.grad(lambda u: jnp.sum(uncertain(u)[0])))
    best = np.log(1.5**2)
    np.testing.assert_allclose(slope(jnp.full(64, best)), 0, atol=1e-9)
    assert np.all(slope(jnp.full(64, best - 0.1)) < 0) and np.all(slope(jnp.full(64, best + 0.1)) > 0)


def test_an_uncertainty_is_one_channel_more_that_says_nothing_of_the_image() -> None:
    plain, process = EDM(), EDM(uncertainty=True)
    assert (plain.output_channels(3), process.output_channels(3)) == (3, 4)
    assert plain.uncertainty_head() == {}
    assert EDM(uncertainty=True, time_scale=250.0).uncertainty_head() == {"time_scale": 250, "channels": 128}
    x, t = jnp.asarray(X0), jnp.asarray(TIMES)
    more = jnp.concatenate([jnp.asarray(F), jnp.full((*X0.shape[:-1], 1), 9.0)], axis=-1)
    for with_u, without in zip(
        process.interpret(more, x, t)[:2], plain.interpret(jnp.asarray(F), x, t)[:2], strict=True
    ):
        np.testing.assert_array_equal(with_u, without)


def test_the_loss_of_a_silent_network_is_one_for_data_of_the_stated_deviation() -> None:
    process = EDM()
    x0: Any = 0.5 * np.random.default_rng(0).normal(size=(4000, 1, 1, 1))
    losses, _ = process.loss(jax.random.key(0), Spy(process), x0, np.zeros(4000, np.int32), NULL)
    assert within_error(losses, 1.0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sigma_data", 0.0),
        ("sigma_min", 0.0),
        ("sigma_min", 80.0),
        ("sigma_max", float("inf")),
        ("log_std", -1.0),
        ("log_std", float("nan")),
        ("time_scale", 0.0),
        ("condition_dropout", -0.1),
    ],
)
def test_a_field_out_of_range_is_named_with_its_value(field: str, value: Any) -> None:
    with pytest.raises(UserError, match=rf"config\.process\.{field}: .*{value}"):
        registry.build(processes, "process", "edm", {field: value})
