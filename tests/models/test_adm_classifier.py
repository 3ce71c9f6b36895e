"""Laws of ADM's classifier of noisy images: its pools by hand, its gradient, and precision."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archirf_jax.errors import UserError
from archirf_jax.models.adm_classifier import POOLS, PRESETS, ADMClassifier

# Widths 64 and 96: with 32 channels a norm has one channel a group, which hides what is added before it.
FIELDS: dict[str, Any] = dict(
    num_classes=5,
    image_size=4,
    model_channels=32,
    num_res_blocks=1,
    channel_mult=(2, 3),
    attention_downsamples=(2,),
    num_head_channels=32,
)
MODELS = {pool: ADMClassifier(**FIELDS, pool=pool) for pool in POOLS}
MODEL = MODELS["attention"]
RANDOM = np.random.default_rng(0)
B, H, C = 3, 4, 2
X = RANDOM.normal(size=(B, H, H, C)).astype(np.float32)
T = np.asarray([0.0, 300.0, 999.0], np.float32)
Y = np.asarray([0, 4, 2], np.int32)


@functools.partial(jax.jit, static_argnums=0, static_argnames="method")
def apply(model: ADMClassifier, params: Any, x: Any, t: Any, method: str = "__call__") -> Any:
    return model.apply({"params": params}, x, t, method=method)


def log_probability(params: Any, x: Any, model: ADMClassifier) -> Any:
    """Of labels Y, summed over the batch."""
    return jnp.take_along_axis(jax.nn.log_softmax(apply(model, params, x, T)), Y[:, None], axis=-1).sum()


gradients = jax.jit(jax.grad(log_probability, (0, 1)), static_argnums=2)


def shapes(model: ADMClassifier, x: Any = X) -> Any:
    return jax.eval_shape(model.init, jax.random.key(0), x, np.zeros(len(x), np.float32))["params"]


@functools.cache
def stirred(model: ADMClassifier) -> Any:
    """Parameters without zeros, so that every branch counts."""
    random = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: random.normal(0, 0.1, leaf.shape).astype(np.float32), shapes(model))


def dense(layer: Any, x: np.ndarray) -> np.ndarray:
    return x @ layer["kernel"] + layer["bias"]


@pytest.mark.parametrize("pool", POOLS)
def test_logits_and_features_have_their_shapes(pool: str) -> None:
    model = MODELS[pool].clone(dtype=jnp.bfloat16)
    logits, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), X, T)
    features = jax.eval_shape(functools.partial(model.apply, method="features"), {"params": shapes(model)}, X, T)
    assert logits.shape == (B, 5) and features.shape == (B, H // 2, H // 2, 96)
    assert logits.dtype == features.dtype == jnp.float32


def test_the_mean_pool_says_the_same_of_every_label_at_initialisation() -> None:
    model = MODELS["adaptive"]
    head = jax.jit(lambda: model.init(jax.random.key(1), X, T)["params"]["head"])()
    np.testing.assert_array_equal(apply(model, stirred(model) | {"head": head}, X, T), np.zeros((B, 5)))


def test_the_mean_pool_is_a_layer_of_the_mean_of_the_features() -> None:
    model, params = MODELS["adaptive"], stirred(MODELS["adaptive"])
    features = np.asarray(apply(model, params, X, T, method="features"))
    expected = dense(params["head"], features.mean(axis=(1, 2)))
    np.testing.assert_allclose(apply(model, params, X, T), expected, rtol=1e-4, atol=1e-5)


def test_the_attention_pool_lets_the_mean_of_the_features_ask_all_of_them() -> None:
    params = stirred(MODEL)
    head, features = params["head"], np.asarray(apply(MODEL, params, X, T, method="features"), np.float64)
    expected = []
    for tokens in features.reshape(B, -1, 96):
        tokens = np.concatenate([tokens.mean(axis=0, keepdims=True), tokens]) + head["positions"]
        q, k, v = np.split(dense(head["qkv"], tokens), 3, axis=1)
        pooled = []
        for part in (slice(0, 32), slice(32, 64), slice(64, 96)):
            weights = np.exp(k[:, part] @ q[0, part] / np.sqrt(32))
            pooled.append(weights / weights.sum() @ v[:, part])
        expected.append(dense(head["out"], np.concatenate(pooled)))
    np.testing.assert_allclose(apply(MODEL, params, X, T), expected, rtol=1e-4, atol=1e-5)


def test_the_gradient_in_the_image_is_the_slope_of_the_log_probability() -> None:
    params = stirred(MODEL)
    slope = gradients(params, X, MODEL)[1]
    direction = np.asarray(slope / np.linalg.norm(slope))
    step = 1e-2
    rise = log_probability(params, X + step * direction, MODEL) - log_probability(params, X - step * direction, MODEL)
    np.testing.assert_allclose(rise / (2 * step), np.linalg.norm(slope), rtol=1e-2)
    assert np.all(np.abs(slope).max(axis=(1, 2, 3)) > 0)


@pytest.mark.parametrize("pool", POOLS)
def test_every_parameter_gets_a_gradient(pool: str) -> None:
    # One whole network; under the other pools a smaller one.
    model = MODELS[pool] if pool == "attention" else MODELS[pool].clone(channel_mult=(2,), attention_downsamples=())
    found = gradients(stirred(model), X, model)[0]
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(found))
    for path, leaf in jax.tree.leaves_with_path(found):
        assert 1e-6 * largest < np.abs(leaf).max() < np.inf, jax.tree_util.keystr(path)


@pytest.mark.parametrize("pool", POOLS)
def test_logits_depend_on_image_and_time_of_their_own_example(pool: str) -> None:
    model, params = MODELS[pool], stirred(MODELS[pool])
    out = np.asarray(apply(model, params, X, T))
    for x, t in ((X[::-1], T), (X, T + 10)):
        assert np.all(np.abs(apply(model, params, x, t) - out)[[0, 2]].max(axis=1) > 1e-4 * np.abs(out).max())
    np.testing.assert_allclose(apply(model, params, X[::-1], T[::-1]), out[::-1], rtol=1e-4, atol=1e-5)


def test_bfloat16_keeps_parameters_in_float32_and_stays_close() -> None:
    model, params = MODEL.clone(dtype=jnp.bfloat16), stirred(MODEL)
    assert shapes(model) == shapes(MODEL)
    rough, exact = np.asarray(apply(model, params, X, T)), np.asarray(apply(MODEL, params, X, T))
    assert 1e-5 < np.linalg.norm(rough - exact) / np.linalg.norm(exact) < 5e-2


def test_pools_without_positions_take_images_of_any_size() -> None:
    wide = np.zeros((1, 8, 2, C), np.float32)
    for pool in POOLS[1:]:
        assert shapes(MODELS[pool], wide) == shapes(MODELS[pool])
    with pytest.raises(UserError) as caught:
        shapes(MODEL, wide)
    assert (caught.value.field, caught.value.value) == ("model.image_size", 4)


def test_the_tiny_preset_takes_8x8_images() -> None:
    tree = shapes(ADMClassifier(num_classes=10, **PRESETS["tiny"]), np.zeros((1, 8, 8, 1), np.float32))
    assert sum(leaf.size for leaf in jax.tree.leaves(tree)) < 5e5


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        (dict(pool="adaptiv"), "model.pool"),
        (dict(num_classes=0), "model.num_classes"),
        (dict(image_size=0), "model.image_size"),
        (dict(channel_mult=()), "model.channel_mult"),
        (dict(channel_mult=(1, 2, 2, 2)), "model.channel_mult"),
        (dict(model_channels=20), "model.channel_mult"),
        (dict(num_head_channels=36), "model.num_head_channels"),
        (dict(num_head_channels=None, num_heads=5), "model.num_heads"),
    ],
)
def test_fields_out_of_their_range_are_named(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError) as caught:
        shapes(ADMClassifier(**FIELDS | fields))
    assert caught.value.field == named
