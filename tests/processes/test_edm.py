"""Laws of EDM: the wrapper around the network is the paper's, and so is the size of what goes in and out."""

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
from archirf_jax.processes.oracles import process_time
from tests.processes.examples import answers, images, predict

pytestmark = pytest.mark.usefixtures("float64")
X0: Any = images(64)
EPS: Any = np.random.default_rng(1).normal(size=X0.shape)
F: Any = np.random.default_rng(2).normal(size=X0.shape)
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
    given = process.network_input(jnp.asarray(x), jnp.asarray(TIMES))
    np.testing.assert_allclose(given, c_in * x, rtol=1e-9)
    prediction = predict(process, answers(F), jnp.asarray(x), jnp.asarray(TIMES))
    np.testing.assert_allclose(process.network_time(jnp.asarray(TIMES)), time_scale * np.ravel(c_noise), rtol=1e-9)
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
    given = process.network_input(process.noised(jnp.asarray(x0), jnp.asarray(eps), t), t)
    # The variance of 10000 normal numbers is known to 1.4 percent.
    np.testing.assert_allclose(np.var(target, axis=(1, 2, 3)), 1, atol=0.07)
    np.testing.assert_allclose(np.var(given, axis=(1, 2, 3)), 1, atol=0.07)


@pytest.mark.parametrize("sigma_max", [80.0, 10.0])
def test_sigma_runs_from_zero_to_its_largest(sigma_max: float) -> None:
    process = EDM(sigma_max=sigma_max)
    assert process.sigma(np.asarray(0.0)) == 0
    assert process.sigma(np.asarray(1.0)) == pytest.approx(sigma_max, rel=1e-12)
    assert process.sigma(jnp.asarray(1.0)) == pytest.approx(sigma_max, rel=1e-5)
    sigma = np.geomspace(1e-4, 10 * sigma_max, 50)  # training goes beyond the largest that is sampled
    np.testing.assert_allclose(process.sigma(process.time_of_ratio(sigma)), sigma, rtol=1e-9)
    np.testing.assert_allclose(process_time(process, np.log(sigma) / 4), process.time_of_ratio(sigma), rtol=1e-9)
    np.testing.assert_allclose(process.time_of_ratio(sigma), sigma / (1 + sigma) * (1 + sigma_max) / sigma_max)


@pytest.mark.parametrize("time_scale", [1.0, 250.0])
def test_the_network_time_is_that_of_a_hundredth_of_the_smallest_sigma_below_it(time_scale: float) -> None:
    process = EDM(time_scale=time_scale)
    sigma = np.geomspace(process.sigma_min / 100, 1e3, 50)
    t = process.time_of_ratio(sigma[1:])
    np.testing.assert_array_equal(process.network_time(t), time_scale / 4 * np.log(process.sigma(t)))
    lowest = time_scale * np.log(process.sigma_min / 100) / 4
    below = process.network_time(process.time_of_ratio(np.append(0.0, sigma[0] * np.linspace(0.01, 1, 9))))
    np.testing.assert_allclose(below, lowest, rtol=1e-12)
    for t_data in (jnp.float32(0), jnp.float64(0)):
        assert process.network_time(t_data) == pytest.approx(lowest, rel=1e-6)
        assert jax.grad(process.network_time)(t_data) == 0


def test_the_prior_has_the_largest_sigma() -> None:
    prior = np.ravel(EDM().prior(jax.random.key(0), (100, 40)))
    assert scipy.stats.kstest(prior / 80, "norm").pvalue > 1e-3


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sigma_data", 0.0),
        ("sigma_min", 0.0),
        ("sigma_min", 80.0),
        ("sigma_max", float("inf")),
        ("time_scale", 0.0),
    ],
)
def test_a_field_out_of_range_is_named_with_its_value(field: str, value: Any) -> None:
    with pytest.raises(UserError) as caught:
        registry.build(processes, "process.name", "edm", {field: value})
    assert caught.value.field == f"process.{field}" and caught.value.value is value
