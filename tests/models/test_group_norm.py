"""Laws of norms over groups: their formula in float64, far from 0 too; derivatives of them and of the SiLU."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archirf_jax.models.group_norm import GroupNorm, group_normalized, silu

RANDOM = np.random.default_rng(0)
SCALE, BIAS = (RANDOM.normal(size=6).astype(np.float32) for _ in range(2))


def exact(x: Any, groups: int, eps: float) -> np.ndarray:
    """The norm in float64, one example and group after the other."""
    x = np.asarray(x, np.float64)
    out = np.empty(x.shape)
    for example, answer in zip(x, out, strict=True):
        for channels in np.split(np.arange(x.shape[-1]), groups):
            some = example[..., channels]
            answer[..., channels] = (some - some.mean()) / np.sqrt(some.var() + eps)
    return out * SCALE + BIAS


@pytest.mark.parametrize("shape", [(2, 5, 7, 6), (3, 1, 6), (2, 9, 6), (1, 16, 16, 6)])
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_the_norm_is_its_formula(shape: tuple[int, ...], groups: int) -> None:
    x = RANDOM.normal(size=shape).astype(np.float32)
    np.testing.assert_allclose(group_normalized(x, SCALE, BIAS, groups, 1e-3), exact(x, groups, 1e-3), atol=2e-6)


@pytest.mark.parametrize("far", [100.0, 1e4])
def test_it_is_as_exact_far_from_zero(far: float) -> None:
    """The mean of squares less the square of the mean would lose the variance."""
    x = (far + RANDOM.normal(size=(2, 16, 16, 6))).astype(np.float32)
    x[0, ::2] += far  # and where pixels differ much
    np.testing.assert_allclose(group_normalized(x, SCALE, BIAS, 2, 1e-5), exact(x, 2, 1e-5), atol=far * 1e-6)


def test_it_is_finite_where_nothing_varies() -> None:
    x = jnp.full((1, 4, 4, 6), 3.7)
    out, slope = jax.value_and_grad(lambda x: jnp.sum(group_normalized(x, SCALE, BIAS, 2, 1e-5) ** 2))(x)
    assert np.isfinite(out) and np.isfinite(slope).all()
    np.testing.assert_allclose(group_normalized(x, SCALE, BIAS, 2, 1e-5), np.broadcast_to(BIAS, x.shape), atol=1e-3)


def test_derivatives_of_both_orders_are_those_of_the_formula() -> None:
    x, way = (jnp.asarray(RANDOM.normal(size=(2, 5, 3, 6)), jnp.float32) for _ in range(2))

    def formula(x: jax.Array) -> jax.Array:
        h = x.reshape(2, 15, 3, 2)
        h = h - h.mean((1, 3), keepdims=True)
        return (h / jnp.sqrt(jnp.mean(h**2, (1, 3), keepdims=True) + 1e-2)).reshape(x.shape) * SCALE + BIAS

    def slopes(norm: Any) -> Any:
        def gradient(x: jax.Array) -> jax.Array:
            return jax.grad(lambda x: jnp.sum(jnp.sin(norm(x))))(x)

        return gradient(x), jax.jvp(norm, (x,), (way,))[1], jax.jvp(gradient, (x,), (way,))[1]

    ours = slopes(lambda x: group_normalized(x, SCALE, BIAS, 3, 1e-2))
    for given, wanted in zip(ours, slopes(formula), strict=True):
        np.testing.assert_allclose(given, wanted, rtol=1e-4, atol=1e-4)


def test_the_layer_has_a_scale_and_a_bias_a_channel_and_is_in_float32() -> None:
    layer, x = GroupNorm(3), jnp.ones((2, 4, 6), jnp.bfloat16)
    params = layer.init(jax.random.key(0), x)["params"]
    np.testing.assert_array_equal(params["scale"], np.ones(6))
    np.testing.assert_array_equal(params["bias"], np.zeros(6))
    assert layer.apply({"params": params}, x).dtype == jnp.float32


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_silu_is_rounded_once_and_its_gradient_is_kept_in_the_dtype(dtype: Any) -> None:
    h = jnp.linspace(-20, 20, 401)
    np.testing.assert_array_equal(silu(h, dtype), nn.silu(h).astype(dtype))
    slope = jax.grad(lambda h: jnp.sum(silu(h, dtype).astype(jnp.float32)))(h)
    assert slope.dtype == jnp.float32
    np.testing.assert_allclose(slope, jax.vmap(jax.grad(nn.silu))(h), atol=1e-6 if dtype == jnp.float32 else 2**-8)
    seen = str(jax.make_jaxpr(lambda h, g: jax.vjp(lambda h: silu(h, dtype), h)[1](g))(h, h.astype(dtype)))
    assert dtype == jnp.float32 or "bf16[401] = mul" in seen
    curved = jax.vmap(jax.grad(jax.grad(nn.silu)))(h)
    np.testing.assert_allclose(jax.vmap(jax.grad(jax.grad(lambda h: silu(h, jnp.float32))))(h), curved, atol=1e-6)
