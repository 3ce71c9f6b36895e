"""Laws of the rectified flow and its relatives: the paths, what is learned along them, and the times' weights."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from archirf_jax import processes, registry
from archirf_jax.errors import UserError
from archirf_jax.processes.rectified_flow import PATHS, PREDICTIONS, TIME_DISTRIBUTIONS, RectifiedFlow
from archirf_jax.processes.times import CosMap, LogitNormal, Mode, Shifted, Uniform
from tests.processes.examples import Spy, images, knows, within_error

pytestmark = pytest.mark.usefixtures("float64")
X0 = images(64)
EPS = np.random.default_rng(1).normal(size=X0.shape)
Y = np.arange(64, dtype=np.int32) % 5
NULL = np.int32(5)
TIMES = np.linspace(0.01, 0.99, 64)
# One pixel an image: many draws for little work.
TINY: Any = np.linspace(-1, 1, 4000, dtype=np.float64).reshape(-1, 1, 1, 1)


def written_out(path: str, t: Any) -> tuple[Any, Any, Any, Any]:
    """alpha, sigma and their derivatives, by hand."""
    if path == "linear":
        return 1 - t, t, -np.ones_like(t), np.ones_like(t)
    if path == "gvp":
        c, s = np.cos(np.pi / 2 * t), np.sin(np.pi / 2 * t)
        return c, s, -np.pi / 2 * s, np.pi / 2 * c
    beta = 0.1 + 19.9 * t
    alpha = np.exp(-(0.1 * t + 19.9 * t**2 / 2) / 2)
    sigma = np.sqrt(1 - alpha**2)
    return alpha, sigma, -beta / 2 * alpha, beta / 2 * alpha**2 / sigma


@pytest.mark.parametrize("path", PATHS)
def test_the_path_is_the_published_one(path: str) -> None:
    process = RectifiedFlow(path=path)
    alpha, sigma, _, _ = written_out(path, TIMES)
    np.testing.assert_allclose(process.alpha(TIMES), alpha, rtol=1e-12)
    np.testing.assert_allclose(process.sigma(TIMES), sigma, rtol=1e-12)


def test_a_path_ends_in_noise_alone_unless_it_keeps_variance_by_exponentials() -> None:
    end = np.asarray(1.0)
    for path in ("linear", "gvp"):
        assert RectifiedFlow(path=path).alpha(end) == 0 and RectifiedFlow(path=path).sigma(end) == 1
    vp = RectifiedFlow(path="vp")
    np.testing.assert_allclose(vp.alpha(end), np.exp(-(0.1 + 20) / 4), rtol=1e-12)
    for path in ("vp", "gvp"):
        process = RectifiedFlow(path=path)
        np.testing.assert_allclose(process.alpha(TIMES) ** 2 + process.sigma(TIMES) ** 2, 1, rtol=1e-12)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("path", PATHS)
def test_what_is_learned_is_the_named_quantity(path: str, prediction: str) -> None:
    a, s, a_rate, s_rate = written_out(path, TIMES[:, None, None, None])
    expected = {
        "velocity": a_rate * X0 + s_rate * EPS,
        "x0": X0,
        "eps": EPS,
        "v": a * EPS - s * X0,
    }[prediction]
    target = RectifiedFlow(path=path, prediction=prediction).target(X0, EPS, jnp.asarray(TIMES))
    np.testing.assert_allclose(target, expected, rtol=1e-10, atol=1e-10)


def test_the_velocity_of_the_straight_path_says_both_ends_at_all_times() -> None:
    v, t = EPS, jnp.linspace(0, 1, 64)
    prediction = RectifiedFlow().predict(lambda x, t, y: jnp.asarray(v), X0, t, Y)
    np.testing.assert_allclose(prediction.eps - prediction.x0, v, atol=1e-6)
    np.testing.assert_allclose(prediction.x0, X0 - np.asarray(t)[:, None, None, None] * v, atol=1e-6)


def test_the_loss_of_a_silent_network_is_the_mean_square_of_the_velocity() -> None:
    """eps is standard normal, so |eps - x0|^2 is 1 + x0^2 on average, with variance 2 + 4 x0^2."""
    process = RectifiedFlow()
    losses, _ = process.loss(jax.random.key(0), Spy(process), TINY, np.zeros(len(TINY), np.int32), np.int32(1))
    square = TINY.astype(np.float64) ** 2
    standard_error = np.sqrt(np.sum(2 + 4 * square)) / len(TINY)
    assert abs(np.mean(losses) - np.mean(1 + square)) < 4 * standard_error


@pytest.mark.parametrize("time_scale", [1000.0, 1.0, 7.0])
def test_the_network_is_told_the_scaled_times_of_the_draw(time_scale: float) -> None:
    process = RectifiedFlow(time_scale=time_scale)
    spy = Spy(process)
    _, aux = process.loss(jax.random.key(0), spy, X0, Y, NULL)
    np.testing.assert_allclose(spy.t, time_scale * aux["t"], rtol=1e-12)
    process.predict(spy, X0, aux["t"], Y)
    np.testing.assert_allclose(spy.t, time_scale * aux["t"], rtol=1e-6)


DISTRIBUTIONS: dict[str, Any] = {
    "uniform": Uniform(),
    "logit_normal": LogitNormal(-0.3, 1.2),
    "mode": Mode(0.8),
    "cosmap": CosMap(),
}
FIELDS: dict[str, Any] = {"logit_mean": -0.3, "logit_std": 1.2, "mode_scale": 0.8}


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("name", TIME_DISTRIBUTIONS)
def test_times_are_those_of_the_named_distribution_and_weigh_the_same(name: str, shift: float) -> None:
    process = RectifiedFlow(time_distribution=name, shift=shift, **FIELDS)
    t, weights = process.sample_times(jax.random.key(0), 100)
    expected = Shifted(DISTRIBUTIONS[name], shift)
    np.testing.assert_array_equal(t, expected.sample(jax.random.key(0), 100))
    np.testing.assert_array_equal(weights, np.ones(100))
    np.testing.assert_array_equal(process.time_density(t), expected.density(t))


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("weigh_as", TIME_DISTRIBUTIONS)
@pytest.mark.parametrize("drawn", TIME_DISTRIBUTIONS)
def test_weighted_means_are_those_of_the_distribution_that_is_weighed_as(
    drawn: str, weigh_as: str, shift: float
) -> None:
    """Of a function that is 0 near the ends, where weights may have no finite variance."""

    def function(t: Any) -> Any:
        return np.where((t > 0.1) & (t < 0.8), np.exp(-2 * t), 0)

    process = RectifiedFlow(time_distribution=drawn, weigh_as=weigh_as, shift=shift, **FIELDS)
    t, weights = process.sample_times(jax.random.key(0), 20000)
    places = np.linspace(0.1, 0.8, 2001)
    density = np.asarray(DISTRIBUTIONS[weigh_as].density(jnp.asarray(places)), np.float64)
    expected = scipy.integrate.simpson(np.exp(-2 * places) * density, x=places)
    assert within_error(np.asarray(weights, np.float64) * function(np.asarray(t)), expected)


def test_the_weights_of_the_times_weigh_the_losses() -> None:
    process = RectifiedFlow(time_distribution="uniform", weigh_as="logit_normal")
    losses, aux = process.loss(jax.random.key(0), knows(process, X0, error=1.0), X0, Y, NULL)
    np.testing.assert_allclose(aux["raw"], 1, rtol=1e-9)
    np.testing.assert_allclose(losses, LogitNormal().density(aux["t"]) * aux["raw"], rtol=1e-6)


@pytest.mark.parametrize("path", ["linear", "gvp"])
def test_a_predicted_noise_may_not_start_where_no_image_is_left(path: str) -> None:
    process = RectifiedFlow(path=path, prediction="eps")
    with pytest.raises(UserError, match=f"t=1, where path '{path}'.*grid 'karras'"):
        process.check_start(1.0)
    process.check_start(0.999)
    RectifiedFlow(path="vp", prediction="eps").check_start(1.0)
    for prediction in ("velocity", "x0", "v"):
        RectifiedFlow(path=path, prediction=prediction).check_start(1.0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("path", "cubic"),
        ("prediction", "score"),
        ("time_distribution", "logitnormal"),
        ("weigh_as", "beta"),
        ("logit_std", 0.0),
        ("logit_std", float("nan")),
        ("mode_scale", -1.1),
        ("mode_scale", 1.76),
        ("mode_scale", float("nan")),
        ("shift", 0.0),
        ("shift", -3.0),
        ("shift", float("inf")),
        ("time_scale", 0.0),
        ("condition_dropout", 1.1),
    ],
)
def test_a_field_out_of_range_is_named_with_its_value(field: str, value: Any) -> None:
    with pytest.raises(UserError, match=rf"config\.process\.{field}: .*{value}"):
        registry.build(processes, "process", "rectified_flow", {field: value})


def test_a_misspelt_time_distribution_brings_the_nearest_one() -> None:
    with pytest.raises(UserError, match="did you mean 'logit_normal'"):
        RectifiedFlow(time_distribution="logit-normal")
