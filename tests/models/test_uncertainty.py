"""Laws of the head that says the expected loss: only time moves it, and training makes it the logarithm of the loss."""

from __future__ import annotations

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from archirf_jax.contracts import Condition
from archirf_jax.models.binding import bind
from archirf_jax.models.edm2_unet import EDM2UNet
from archirf_jax.models.magnitude import MPFourier
from archirf_jax.models.uncertainty import Uncertain

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(5, 4, 6, 3)).astype(np.float32)
T = np.asarray([-400.0, -20.0, 0.0, 30.0, 250.0], np.float32)
Y = np.asarray([0, 1, 2, 3, 0], np.int32)
LABELS = {"label": Y}


class Small(nn.Module):
    """A network that depends on everything."""

    @nn.compact
    def __call__(self, x: jax.Array, t: jax.Array, condition: Condition) -> jax.Array:
        return nn.Dense(3)(x) + nn.Embed(4, 3)(condition["label"])[:, None, None] * jnp.sin(t)[:, None, None, None]


SMALL = Small()


def moved(params: Any) -> Any:
    """Parameters far from where they started."""
    leaves, tree = jax.tree.flatten(params)
    return tree.unflatten([leaf + RANDOM.normal(size=leaf.shape).astype(np.float32) for leaf in leaves])


@functools.cache
def initialised(model: nn.Module) -> Any:
    return jax.jit(model.init)(jax.random.key(0), X, T, LABELS)["params"]


def params_of(model: nn.Module) -> Any:
    """A copy, to be changed at will."""
    return jax.tree.map(np.array, initialised(model))


@functools.partial(jax.jit, static_argnums=0)
def apply(model: nn.Module, params: Any, x: Any, t: Any, y: Any) -> Any:
    return model.apply({"params": params}, x, t, {"label": y})


@functools.partial(jax.jit, static_argnums=0)
def head(model: nn.Module, params: Any, x: Any, t: Any, y: Any) -> Any:
    """(B,)"""
    return bind(model, params)(x, t, {"label": y})[1]["log_variance"]


def test_the_networks_answer_is_unchanged() -> None:
    model = Uncertain(SMALL, 250.0)
    params = moved(params_of(model))
    np.testing.assert_allclose(apply(model, params, X, T, Y), apply(SMALL, params["network"], X, T, Y), rtol=1e-6)
    assert head(model, params, X, T, Y).shape == (5,) and np.all(head(model, params, X, T, Y))


def test_before_training_the_head_has_mean_square_1_over_networks() -> None:
    model, t = Uncertain(Silent()), np.linspace(-1.6, 1.1, 5, dtype=np.float32)
    x = np.zeros((5, 1, 1, 1), np.float32)
    keys = jax.random.split(jax.random.key(0), 500)

    def fresh(key: jax.Array) -> jax.Array:
        return bind(model, model.init(key, x, t, {})["params"])(x, t, {})[1]["log_variance"]

    u = jax.jit(jax.vmap(fresh))(keys)
    np.testing.assert_allclose(np.mean(np.square(u), axis=0), 1, atol=0.25)
    np.testing.assert_allclose(np.mean(u, axis=0), 0, atol=0.15)


def test_only_time_moves_the_head() -> None:
    model = Uncertain(SMALL, 250.0)
    params = moved(params_of(model))
    u = np.asarray(head(model, params, X, T, Y))
    assert len(np.unique(u)) == len(T)
    np.testing.assert_allclose(u, head(model, params, -X, T, 3 - Y), rtol=1e-6)
    np.testing.assert_allclose(u[::-1], head(model, params, X, T[::-1], Y), rtol=1e-5)


def test_network_times_count_in_units_of_the_scale() -> None:
    params = moved(params_of(Uncertain(SMALL)))
    near, far = (head(Uncertain(SMALL, scale), params, X, T / 250 * scale, Y) for scale in (1.0, 250.0))
    np.testing.assert_allclose(near, far, atol=1e-4)
    assert np.max(np.abs(far - head(Uncertain(SMALL, 250.0), params, X, T / 250, Y))) > 0.1


def test_it_learns_one_number_a_feature_and_keeps_the_features() -> None:
    channels = 16
    model = Uncertain(SMALL, channels=channels)
    params = params_of(model)
    assert jax.tree.structure(params["network"]) == jax.tree.structure(params_of(SMALL))
    assert {name: jax.tree.map(jnp.shape, leaf) for name, leaf in params.items() if name != "network"} == {
        "uncertainty": {"kernel": (channels, 1)},
        "uncertainty_features": {"frozen_frequencies": (channels,), "frozen_phases": (channels,)},
    }
    slope = jax.jit(jax.grad(lambda params: jnp.sum(jnp.square(head(model, params, X, T, Y)))))(params)
    assert np.all(slope["uncertainty"]["kernel"] != 0)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(slope["uncertainty_features"]))


def test_normalized_parameters_have_unit_weights_and_give_the_same() -> None:
    model = Uncertain(SMALL)
    params = params_of(model)
    params["uncertainty"]["kernel"] *= 5
    unit = model.normalize_weights(params)
    assert np.mean(np.square(unit["uncertainty"]["kernel"])) == pytest.approx(1, rel=1e-3)
    assert unit["network"] is params["network"]  # which does not normalize its weights
    np.testing.assert_allclose(head(model, unit, X, T, Y), head(model, params, X, T, Y), rtol=1e-3, atol=1e-3)


def test_a_network_with_forced_weight_normalization_keeps_it() -> None:
    network = EDM2UNet(num_classes=4, model_channels=4, channel_mult=(1,), num_blocks=0, channels_per_head=4,
                       attention_levels=())  # fmt: skip
    model = Uncertain(network)
    like = jax.eval_shape(model.init, jax.random.key(0), X, T, LABELS)["params"]
    params = jax.tree.map(lambda leaf: 3 * RANDOM.normal(size=leaf.shape).astype(np.float32), like)
    unit = jax.jit(model.normalize_weights)(params)
    assert jax.tree.structure(unit) == jax.tree.structure(params)
    alone = jax.jit(network.normalize_weights)(params["network"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), unit["network"], alone)
    assert not np.array_equal(unit["network"]["out_conv"]["kernel"], params["network"]["out_conv"]["kernel"])


def test_smooth_functions_of_ln_sigma_over_4_are_within_reach_of_unit_weights() -> None:
    t = np.linspace(-1.6, 1.1, 300, dtype=np.float32)
    curves = np.stack([np.ones_like(t), t, np.exp(-t) - 2, np.sin(4 * t)], axis=1)
    layer = MPFourier(Uncertain.channels)
    features = np.asarray(layer.init_with_output(jax.random.key(0), t)[0], np.float64)
    weights = np.linalg.lstsq(features, curves, rcond=1e-6)[0]
    np.testing.assert_allclose(features @ weights, curves, atol=2e-3)
    # What is left of a weight's length goes where features of these times are zero.
    short = np.linalg.lstsq(features, curves, rcond=1e-3)[0]
    assert np.max(np.abs(features @ short - curves)) < 0.05 and np.max(np.linalg.norm(short, axis=0)) < 1


class Silent(nn.Module):
    """A network that answers 0."""

    @nn.compact
    def __call__(self, x: jax.Array, t: jax.Array, condition: Condition) -> jax.Array:
        return jnp.zeros_like(x)


@pytest.mark.slow
def test_in_training_it_becomes_the_logarithm_of_the_expected_loss_at_each_time() -> None:
    """Of normal images with deviation 1.5 EDM's loss of a network that answers 0 is known, from 1 at the data to 9."""
    time_scale, images = 250.0, (256, 8, 8, 1)
    model = Uncertain(Silent(), time_scale)
    x = jnp.zeros(images)
    params = model.init(jax.random.key(0), x, jnp.zeros(256), {})["params"]
    optimizer = optax.adam(optax.cosine_decay_schedule(0.1, 300))

    def u(params: Any, sigma: jax.Array) -> jax.Array:
        return bind(model, params)(x, time_scale * jnp.log(sigma) / 4, {})[1]["log_variance"]

    def loss(params: Any, key: jax.Array) -> jax.Array:
        times, data, noise = jax.random.split(key, 3)
        sigma = jnp.exp(-1.2 + 1.2 * jax.random.normal(times, (256,)))
        s = sigma[:, None, None, None]
        x0, eps = 1.5 * jax.random.normal(data, images), jax.random.normal(noise, images)
        # Karras et al. 2022, Table 1, with sigma_data = 0.5: what the raw network should answer.
        target = (x0 - 0.25 / (s**2 + 0.25) * (x0 + s * eps)) * jnp.sqrt(s**2 + 0.25) / (0.5 * s)
        losses = jnp.mean(jnp.square(target), axis=(1, 2, 3))
        return jnp.mean(losses / jnp.exp(u(params, sigma)) + u(params, sigma))

    def step(carry: Any, key: jax.Array) -> tuple[Any, None]:
        params, state = model.normalize_weights(carry[0]), carry[1]
        updates, state = optimizer.update(jax.grad(loss)(params, key), state)
        return (optax.apply_updates(params, updates), state), None

    keys = jax.random.split(jax.random.key(1), 300)
    (params, _), _ = jax.jit(lambda carry: jax.lax.scan(step, carry, keys))((params, optimizer.init(params)))
    sigma = jnp.exp(-1.2 + 1.2 * jnp.linspace(-2, 2, 256))
    expected = np.log((2.25 * sigma**2 + 0.0625) / (0.25 * (sigma**2 + 0.25)))
    np.testing.assert_allclose(u(params, sigma), expected, atol=0.12)
    assert math.sqrt(np.mean((u(params, sigma) - expected) ** 2)) < 0.04
