"""Laws of the rectified flow and its relatives: the paths, and what is learned along them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archirf_jax import processes, registry
from archirf_jax.errors import UserError
from archirf_jax.processes.interpolants import PATHS
from archirf_jax.processes.rectified_flow import PREDICTIONS, RectifiedFlow
from tests.processes.examples import answers, images, predict

pytestmark = pytest.mark.usefixtures("float64")
X0 = images(64)
EPS = np.random.default_rng(1).normal(size=X0.shape)
TIMES = np.linspace(0.01, 0.99, 64)


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


def test_the_velocity_of_the_linear_path_gives_both_ends_at_all_times() -> None:
    v, t = EPS, jnp.linspace(0, 1, 64)
    prediction = predict(RectifiedFlow(), answers(v), X0, t)
    np.testing.assert_allclose(prediction.eps - prediction.x0, v, atol=1e-6)
    np.testing.assert_allclose(prediction.x0, X0 - np.asarray(t)[:, None, None, None] * v, atol=1e-6)


@pytest.mark.parametrize("time_scale", [1000.0, 1.0, 7.0])
def test_the_network_is_given_scaled_times(time_scale: float) -> None:
    np.testing.assert_allclose(RectifiedFlow(time_scale=time_scale).network_time(TIMES), time_scale * TIMES, rtol=1e-12)


@pytest.mark.parametrize("shape", [(64, 2, 3, 2), (64, 12)])
def test_rectified_flow_learns_exactly_the_noise_less_the_data(shape: tuple[int, ...]) -> None:
    for dtype in (np.float32, np.float64):
        x0, eps = (jnp.asarray(value, dtype).reshape(shape) for value in (X0, EPS))
        target = jax.jit(RectifiedFlow().target)(x0, eps, jnp.asarray(TIMES, dtype))
        assert target.dtype == dtype
        np.testing.assert_array_equal(target, eps - x0)


@pytest.mark.parametrize("path", ["linear", "gvp"])
def test_a_predicted_noise_may_not_start_where_no_image_is_left(path: str) -> None:
    process = RectifiedFlow(path=path, prediction="eps")
    with pytest.raises(UserError) as caught:
        process.check_start(1.0)
    assert caught.value.field == "sample.grid"
    process.check_start(0.999)
    RectifiedFlow(path="vp", prediction="eps").check_start(1.0)
    for prediction in ("velocity", "x0", "v"):
        RectifiedFlow(path=path, prediction=prediction).check_start(1.0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("path", "cubic"),
        ("prediction", "score"),
        ("time_scale", 0.0),
    ],
)
def test_a_field_out_of_range_is_named_with_its_value(field: str, value: Any) -> None:
    with pytest.raises(UserError) as caught:
        registry.build(processes, "process.name", "rectified_flow", {field: value})
    assert caught.value.field == f"process.{field}" and caught.value.value is value
