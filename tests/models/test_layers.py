"""Laws of the shared layers: each against its formula, written out in plain Python loops."""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archirf_jax.models import layers

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
    return x.astype(np.float64) @ params["kernel"].astype(np.float64) + params["bias"]


def test_attention_is_the_formula() -> None:
    b, n, d, heads = 2, 3, 4, 2
    x = RANDOM.normal(size=(b, n, d)).astype(np.float32)
    params, ours = stirred(layers.SelfAttention(heads), x)
    qkv = linear(params["qkv"], x)
    attended = np.zeros((b, n, d))
    size = d // heads
    for i in range(b):
        for h in range(heads):
            q, k, v = (qkv[i, :, part * d + h * size : part * d + (h + 1) * size] for part in range(3))
            for a in range(n):
                weights = np.asarray([math.exp(q[a] @ k[c] / math.sqrt(size)) for c in range(n)])
                attended[i, a, h * size : (h + 1) * size] = weights @ v / weights.sum()
    np.testing.assert_allclose(ours, linear(params["out"], attended), atol=1e-5)


def test_the_mlp_is_the_formula() -> None:
    x = RANDOM.normal(size=(2, 3, 4)).astype(np.float32)
    params, ours = stirred(layers.Mlp(hidden=5), x)
    h = linear(params["hidden"], x)
    gelu = 0.5 * h * (1 + np.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
    np.testing.assert_allclose(ours, linear(params["out"], gelu), atol=1e-5)


def test_the_timestep_embedder_is_the_formula() -> None:
    t = jnp.asarray([0.0, 400.0])
    params, ours = stirred(layers.TimestepEmbedder(width=6), t)
    h = linear(params["hidden"], np.asarray(layers.sinusoidal_embedding(t)))
    silu = h / (1 + np.exp(-h))
    np.testing.assert_allclose(ours, linear(params["out"], silu), atol=1e-4)
