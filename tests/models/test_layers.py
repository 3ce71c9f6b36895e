"""Laws of the shared layers: each against its formula, written out in plain Python loops."""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archirf_jax.errors import UserError
from archirf_jax.models import layers
from archirf_jax.models.linear import Split

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("width", [6, 256])
def test_the_sinusoidal_embedding_is_the_formula(width: int) -> None:
    times = [0.0, 0.5, 1.0, 37.25, 999.0]
    half = width // 2
    expected = np.zeros((len(times), width))
    for i, t in enumerate(times):
        for k in range(half):
            angle = t / 10_000 ** (k / half)
            expected[i, k] = math.cos(angle)
            expected[i, half + k] = math.sin(angle)
    ours = layers.sinusoidal_embedding(jnp.asarray(times), width)
    assert ours.dtype == jnp.float32
    # An angle of 999 has a spacing of 6e-5 in float32.
    np.testing.assert_allclose(ours, expected, atol=1e-4)


def test_times_are_embedded_in_float32_whatever_their_dtype() -> None:
    whole = jnp.asarray([0, 3, 250])
    np.testing.assert_array_equal(
        layers.sinusoidal_embedding(whole), layers.sinusoidal_embedding(whole.astype(jnp.float32))
    )


@pytest.mark.parametrize(("height", "width", "channels"), [(3, 5, 8), (4, 2, 12)])
def test_the_position_table_is_the_formula(height: int, width: int, channels: int) -> None:
    quarter = channels // 4
    table = layers.sincos_positions_2d(height, width, channels)
    assert table.shape == (height * width, channels) and table.dtype == np.float32
    for row in range(height):
        for column in range(width):
            expected = []
            for position in (column, row):
                angles = [position / 10_000 ** (k / quarter) for k in range(quarter)]
                expected += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            np.testing.assert_allclose(table[row * width + column], expected, atol=1e-6)


def test_a_program_does_not_carry_the_position_table() -> None:
    text = jax.jit(lambda: layers.sincos_positions_2d(64, 64, 64)).lower().as_text()
    assert len(text) < 64 * 64 * 64


def test_patches_are_rows_of_patches_and_rows_of_pixels_in_them() -> None:
    x = np.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    patches = np.asarray(layers.to_patches(jnp.asarray(x), 2))
    assert patches.shape == (2, 6, 12)
    for i in range(6):
        row, column = divmod(i, 3)
        expected = x[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].reshape(2, 12)
        np.testing.assert_array_equal(patches[:, i], expected)
    np.testing.assert_array_equal(layers.from_patches(jnp.asarray(patches), 2, rows=2), x)


def test_a_table_is_cropped_in_its_middle_or_is_too_small() -> None:
    table = jnp.arange(25.0)[:, None] * jnp.ones(3)
    np.testing.assert_array_equal(layers.centre_crop(table, 5, 5), table)
    np.testing.assert_array_equal(layers.centre_crop(table, 1, 3)[:, 0], [11, 12, 13])
    np.testing.assert_array_equal(layers.centre_crop(table, 2, 1)[:, 0], [7, 12])
    for rows, columns in ((6, 1), (1, 6)):
        with pytest.raises(UserError) as caught:
            layers.centre_crop(table, rows, columns)
        assert (caught.value.field, caught.value.value) == ("model.position_size", 5)


def test_layer_normalization_is_the_formula_in_float32() -> None:
    x = (RANDOM.normal(size=(2, 3, 8)) * 1e-3 + 2).astype(np.float32)
    exact = x.astype(np.float64)
    expected = (exact - exact.mean(-1, keepdims=True)) / np.sqrt(exact.var(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(layers.layer_normalized(jnp.asarray(x)), expected, atol=1e-3)
    assert layers.layer_normalized(jnp.asarray(x, jnp.bfloat16)).dtype == jnp.float32


def test_modulation_without_shift_only_scales() -> None:
    x, scale = jnp.ones((2, 3, 2)), jnp.asarray([[0.0, 1.0], [-1.0, 2.0]])
    np.testing.assert_array_equal(layers.modulate(x, None, scale), layers.modulate(x, jnp.zeros((2, 2)), scale))


def test_modulation_scales_and_shifts_each_example_by_its_own() -> None:
    x = jnp.ones((2, 3, 2))
    shift, scale = jnp.asarray([[1.0, 2.0], [3.0, 4.0]]), jnp.asarray([[0.0, 0.0], [1.0, -1.0]])
    expected = np.broadcast_to(np.asarray([[[2.0, 3.0]], [[5.0, 4.0]]]), (2, 3, 2))
    np.testing.assert_array_equal(layers.modulate(x, shift, scale), expected)


def stirred(module: nn.Module, x: np.ndarray | jax.Array) -> Any:
    """Parameters that are normal noise, and the module's output as a float64 array."""
    random = np.random.default_rng(1)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
    params = jax.tree.map(lambda leaf: random.normal(0, 0.5, leaf.shape).astype(np.float32), shapes)
    return params, np.asarray(jax.jit(lambda params: module.apply({"params": params}, x))(params), np.float64)


def linear(params: Any, x: np.ndarray) -> np.ndarray:
    return x.astype(np.float64) @ params["kernel"].astype(np.float64) + params.get("bias", 0.0)


def test_the_mlp_is_the_formula() -> None:
    x = RANDOM.normal(size=(2, 3, 4)).astype(np.float32)
    params, ours = stirred(layers.Mlp(hidden=5), x)
    h = linear(params["hidden"], x)
    gelu = 0.5 * h * (1 + np.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
    np.testing.assert_allclose(ours, linear(params["out"], gelu), atol=1e-5)


def test_the_gated_mlp_is_the_formula_and_two_thirds_as_wide() -> None:
    x = RANDOM.normal(size=(2, 3, 4)).astype(np.float32)
    params, ours = stirred(layers.Mlp(hidden=390, kind="swiglu"), x)
    assert {name: sorted(part) for name, part in params.items()} == dict.fromkeys(("hidden", "gate", "out"), ["kernel"])
    h = linear(params["hidden"], x)
    np.testing.assert_allclose(ours, linear(params["out"], h / (1 + np.exp(-h)) * linear(params["gate"], x)), atol=1e-4)
    for hidden, width in ((1, 256), (384, 256), (387, 512), (4608, 3072)):
        shapes = jax.eval_shape(layers.Mlp(hidden, kind="swiglu").init, jax.random.key(0), x)["params"]
        assert shapes["gate"]["kernel"].shape == (4, width)


def test_the_timestep_embedder_is_the_formula() -> None:
    t = jnp.asarray([0.0, 400.0])
    params, ours = stirred(layers.TimestepEmbedder(width=6), t)
    h = linear(params["hidden"], np.asarray(layers.sinusoidal_embedding(t)))
    silu = h / (1 + np.exp(-h))
    np.testing.assert_allclose(ours, linear(params["out"], silu), atol=1e-4)


@pytest.mark.parametrize(("ours", "formula"), [(layers.gelu, jax.nn.gelu), (layers.stored, lambda x: x)])
def test_what_is_read_from_memory_changes_no_derivative(ours: Any, formula: Any) -> None:
    x, slope = (jax.random.normal(jax.random.key(seed), (7,)) for seed in (0, 1))

    def derivatives(f: Any) -> Any:
        value, forward = jax.jvp(f, (x,), (slope,))
        (back,) = jax.vjp(f, x)[1](slope)
        return value, forward, back, jax.hessian(lambda x: jnp.sum(f(x) ** 2))(x)

    for one, other in zip(jax.jit(derivatives, static_argnums=0)(ours), derivatives(formula), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("use_bias", "heads"), [(False, 1), (True, 1), (True, 2)])
def test_parts_of_a_linear_layer_are_the_same_on_a_gpu(
    use_bias: bool, heads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense, x = Split(12, 3, heads, use_bias), jax.random.normal(jax.random.key(0), (2, 5, 8))
    params = jax.tree.map(lambda leaf: leaf + jnp.arange(12) / 10, dense.init(jax.random.key(1), x))
    here = dense.apply(params, x)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    whole = nn.Dense(12, use_bias=use_bias).apply(params, x)
    assert isinstance(whole, jax.Array)
    width = 4 // heads
    for i, (ours, there) in enumerate(zip(here, dense.apply(params, x), strict=True)):
        starts = [(head * 3 + i) * width for head in range(heads)]
        part = np.concatenate([whole[..., start : start + width] for start in starts], axis=-1)
        np.testing.assert_allclose(ours, part, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(there, part, rtol=1e-5, atol=1e-6)
