"""Laws of the layers that keep magnitudes: mean squares in expectation, what weights mean, resampling, constants."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archirf_jax.models import magnitude
from archirf_jax.models.magnitude import MPConv, MPDense, MPFourier, mp_concat, mp_silu, mp_sum

halve, double = (jax.jit(f, static_argnums=1) for f in (magnitude.halve, magnitude.double))
RANDOM = np.random.default_rng(0)
BALANCES = (0.0, 0.3, 0.5, 1.0)
FILTERS = ((1, 1), (1, 3, 3, 1), (1, 2, 4, -0.5))


def normal(*shape: int) -> np.ndarray:
    return RANDOM.normal(size=shape).astype(np.float32)


def mean_square(x: Any) -> float:
    return float(np.mean(np.square(np.asarray(x, np.float64))))


def made(layer: nn.Module, *inputs: Any, **fields: Any) -> tuple[Any, Any]:
    out, variables = jax.jit(layer.init_with_output)(jax.random.key(0), *inputs, **fields)
    return out, variables["params"]


def test_normalized_vectors_have_mean_square_1_whatever_their_length() -> None:
    x = normal(5, 7, 3) * np.asarray([0.5, 3.0, 4000.0], np.float32)
    out = np.asarray(magnitude.normalized(x, axis=(0, 1)))
    np.testing.assert_allclose(np.mean(np.square(out), axis=(0, 1)), 1, rtol=5e-4)
    np.testing.assert_allclose(out / x, np.broadcast_to(out[:1, :1] / x[:1, :1], x.shape), rtol=1e-5)


def test_zeros_stay_zeros_with_finite_slopes() -> None:
    zeros = jnp.zeros((2, 3))
    out, slopes = jax.jit(jax.value_and_grad(lambda x: jnp.sum(magnitude.normalized(x))))(zeros)
    assert out == 0 and np.all(np.isfinite(slopes))


@pytest.mark.parametrize("shape", [(4000, 9), (40, 32, 32, 9)])
def test_layers_keep_the_mean_square_of_independent_numbers(shape: tuple[int, ...]) -> None:
    x = normal(*shape)
    dense, _ = made(MPDense(64), x)
    assert mean_square(dense) == pytest.approx(1, rel=0.03)
    if len(shape) == 4:
        conv, _ = made(MPConv(64), x)
        assert conv.shape == (*shape[:-1], 64)
        assert mean_square(conv[:, 1:-1, 1:-1]) == pytest.approx(1, rel=0.03)


def test_silu_sums_and_concatenations_keep_mean_squares() -> None:
    a, b = normal(2000, 40), normal(2000, 10)
    assert mean_square(mp_silu(a)) == pytest.approx(1, rel=0.03)
    for balance in BALANCES:
        assert mean_square(mp_sum(a, a[::-1], balance)) == pytest.approx(1, rel=0.02)
        both = np.asarray(mp_concat(a, b, balance))
        assert both.shape == (2000, 50) and mean_square(both) == pytest.approx(1, rel=0.02)
        # Together they count as the balance says, though one has four times as many channels.
        lengths = np.sqrt([np.sum(np.square(both[:, part])) for part in (slice(40), slice(40, 50))])
        np.testing.assert_allclose(lengths[1] * (1 - balance), lengths[0] * balance, rtol=0.03)


def test_sums_are_weighted_as_the_balance_says() -> None:
    a, b = normal(3, 4), normal(3, 4)
    np.testing.assert_allclose(mp_sum(a, b, 0.0), a, rtol=1e-6)
    np.testing.assert_allclose(mp_sum(a, b, 1.0), b, rtol=1e-6)
    np.testing.assert_allclose(mp_sum(a, b, 0.2), (0.8 * a + 0.2 * b) / np.sqrt(0.68), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layer", [MPDense(6), MPConv(6), MPConv(6, size=5)])
def test_only_the_direction_of_a_weight_matters_and_the_gain_is_a_factor(layer: nn.Module) -> None:
    x, apply = normal(2, 5, 4, 3), jax.jit(layer.apply)
    out, params = made(layer, x)
    lengths = np.asarray([1, 2, 5, 10, 100, 1000], np.float32)
    longer = {"kernel": params["kernel"] * lengths}
    np.testing.assert_allclose(apply({"params": longer}, x), out, rtol=1e-3, atol=1e-4)
    flipped = apply({"params": {"kernel": -params["kernel"]}}, x, jnp.float32(-0.5))
    np.testing.assert_allclose(flipped, 0.5 * np.asarray(out), rtol=1e-5, atol=1e-6)

    slope = jax.jit(jax.grad(lambda p: jnp.sum(jnp.sin(layer.apply({"params": p}, x)))))(params)["kernel"]
    along = np.sum(np.asarray(slope * params["kernel"]).reshape(-1, 6), axis=0)
    np.testing.assert_allclose(along, 0, atol=2e-3 * float(np.max(np.abs(slope))))


def test_a_dense_layer_is_a_convolution_of_size_1_and_a_convolution_is_a_sum_over_neighbours() -> None:
    x, kernel = normal(1, 4, 5, 2), normal(3, 3, 2, 1)
    out = np.asarray(jax.jit(MPConv(1).apply)({"params": {"kernel": kernel}}, x))
    unit = kernel / (np.sqrt(np.mean(kernel**2)) + 1e-4) / 18**0.5
    padded = np.pad(x[0], ((1, 1), (1, 1), (0, 0)))
    expected = [[np.sum(padded[i : i + 3, j : j + 3] * unit[..., 0]) for j in range(5)] for i in range(4)]
    np.testing.assert_allclose(out[0, ..., 0], expected, rtol=1e-4, atol=1e-5)
    point = kernel[:1, :1]
    dense = jax.jit(MPDense(1).apply)({"params": {"kernel": point[0, 0]}}, x)
    conv = jax.jit(MPConv(1, size=1).apply)({"params": {"kernel": point}}, x)
    np.testing.assert_allclose(dense, conv, rtol=1e-5, atol=1e-6)


def test_unit_weights_are_unit_for_every_output_once_and_for_all() -> None:
    params = {"a": {"kernel": 7 * normal(3, 3, 4, 6), "gain": jnp.float32(0.3)}, "frozen_phases": normal(5)}
    unit = magnitude.with_unit_weights(params)
    np.testing.assert_allclose(np.mean(np.square(unit["a"]["kernel"]), axis=(0, 1, 2)), 1, rtol=1e-3)
    again = magnitude.with_unit_weights(unit)
    np.testing.assert_allclose(again["a"]["kernel"], unit["a"]["kernel"], rtol=2e-4)
    assert unit["a"]["gain"] == params["a"]["gain"] and unit["frozen_phases"] is params["frozen_phases"]


def test_short_filters_average_and_repeat() -> None:
    x = normal(2, 4, 6, 3)
    means = x.reshape(2, 2, 2, 3, 2, 3).mean(axis=(2, 4))
    np.testing.assert_allclose(halve(x), means, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(double(x), x.repeat(2, axis=1).repeat(2, axis=2), rtol=1e-6)
    np.testing.assert_allclose(halve(double(x)), x, rtol=1e-6)


@pytest.mark.parametrize("taps", FILTERS)
def test_each_pixel_of_a_halved_image_is_a_weighted_mean_of_neighbours(taps: tuple[float, ...]) -> None:
    x, f, margin = normal(1, 6, 8, 1), np.asarray(taps) / sum(taps), len(taps) // 2 - 1
    padded = np.pad(x[0, ..., 0], margin)
    out = np.asarray(halve(x, taps))[0, ..., 0]
    for i, j in ((0, 0), (1, 2), (2, 3)):
        around = padded[2 * i : 2 * i + len(f), 2 * j : 2 * j + len(f)]
        np.testing.assert_allclose(out[i, j], f @ around @ f, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("taps", FILTERS)
def test_doubling_is_four_times_the_transpose_of_halving_and_both_keep_what_is_constant(taps: Any) -> None:
    big, small = normal(1, 8, 12, 2), normal(1, 4, 6, 2)
    grown = np.asarray(double(small, taps))
    assert grown.shape == big.shape
    np.testing.assert_allclose(np.sum(4 * halve(big, taps) * small), np.sum(big * grown), rtol=1e-4, atol=1e-4)
    flat = np.asarray(halve(jnp.ones((1, 12, 12, 1)), taps))
    np.testing.assert_allclose(flat[:, 1:-1, 1:-1], 1, rtol=1e-5)


def test_the_features_have_mean_square_1_and_are_constants() -> None:
    t = jnp.linspace(-2000, 2000, 20_001)
    features, params = made(MPFourier(32), t)
    np.testing.assert_allclose(np.mean(np.square(features), axis=0), 1, atol=0.05)
    assert set(params) == {"frozen_frequencies", "frozen_phases"}
    total = jax.jit(jax.grad(lambda p, t: jnp.sum(MPFourier(32).apply({"params": p}, t)), (0, 1)))
    slope, moving = total(params, t[:9])
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(slope))
    assert np.all(moving != 0)


@pytest.mark.parametrize("bandwidth", [1.0, 0.5])
def test_times_are_as_alike_as_a_normal_density_of_their_distance_says(bandwidth: float) -> None:
    t, count = np.linspace(-1.6, 1.1, 100, dtype=np.float32), 2048
    features = np.asarray(made(MPFourier(count, bandwidth), t)[0])
    kernel = np.exp(-0.5 * (2 * np.pi * bandwidth * (t[:, None] - t)) ** 2)
    assert np.sqrt(np.mean((features @ features.T / count - kernel) ** 2)) < 1.2 / count**0.5


@pytest.mark.parametrize("layer", [MPDense(6, jnp.bfloat16), MPConv(6, dtype=jnp.bfloat16)])
def test_half_precision_is_of_the_computation_and_not_of_the_weights(layer: nn.Module) -> None:
    x = normal(2, 5, 4, 8)
    out, params = made(layer, x)
    assert out.dtype == jnp.bfloat16 and params["kernel"].dtype == jnp.float32
    exact = np.asarray(jax.jit(layer.clone(dtype=jnp.float32).apply)({"params": params}, x))
    assert 1e-4 < np.max(np.abs(np.asarray(out, np.float32) - exact)) < 0.1
