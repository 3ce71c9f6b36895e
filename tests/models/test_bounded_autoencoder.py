"""Laws of the bounded autoencoder: a gain that is positive and cancels, bounds and what gradients pass them."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archirf_jax.errors import UserError
from archirf_jax.models import binding
from archirf_jax.models.bounded_autoencoder import BOUNDS, GAINS, BoundedAutoencoder, bounded

FIELDS: dict[str, Any] = dict(block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4, latent_channels=3)
MODEL = BoundedAutoencoder(**FIELDS)
X = np.random.default_rng(0).normal(size=(2, 4, 6, 3)).astype(np.float32)
Z = jnp.asarray([-3.0, -1.0, -0.5, 0.0, 0.25, 1.0, 2.0])


@functools.partial(jax.jit, static_argnums=0)
def encoded(model: BoundedAutoencoder, params: Any) -> Any:
    return binding.call(model, params, X, method="encode")


@pytest.fixture(scope="module")
def params() -> Any:
    """Drawn without compiling an initialisation, but for the gain."""
    random, shapes = np.random.default_rng(0), jax.eval_shape(MODEL.init, jax.random.key(0), X)["params"]
    drawn = jax.tree.map(lambda leaf: random.normal(0, 0.3, leaf.shape).astype(np.float32), shapes)
    return drawn | {"gain": np.float32(0)}


@pytest.mark.parametrize("kind", GAINS)
def test_the_gain_starts_at_1_and_is_positive_whatever_is_learned(kind: str, params: Any) -> None:
    model = BoundedAutoencoder(**FIELDS, gain=kind, bound="none")
    first = jax.jit(lambda: model.init(jax.random.key(0), X)["params"]["gain"])()
    gains = {raw: encoded(model, params | {"gain": jnp.float32(raw)})[1]["latent_gain"] for raw in (-30.0, -2.0, 3.0)}
    assert encoded(model, params | {"gain": first})[1]["latent_gain"] == pytest.approx(1)
    assert 0 < gains[-30.0] < gains[-2.0] < 1 < gains[3.0]


def test_the_gain_multiplies_latents_and_cancels_in_what_is_decoded(params: Any) -> None:
    model = BoundedAutoencoder(**FIELDS, bound="none")
    apply = jax.jit(model.apply)
    for raw in (-1.0, 2.0):
        other = params | {"gain": jnp.float32(raw)}
        np.testing.assert_allclose(encoded(model, other)[0], np.exp(raw) * encoded(model, params)[0], rtol=1e-5)
        np.testing.assert_allclose(apply({"params": other}, X), apply({"params": params}, X), rtol=1e-4, atol=1e-5)


def test_bounds_are_their_functions() -> None:
    np.testing.assert_array_equal(bounded(Z, "none"), Z)
    np.testing.assert_allclose(bounded(Z, "tanh"), np.tanh(Z), rtol=1e-5)
    for straight_through in (True, False):
        np.testing.assert_array_equal(bounded(Z, "clip", straight_through), np.clip(Z, -1, 1))


def test_gradients_pass_a_clip_as_if_it_were_not_there_only_straight_through() -> None:
    slopes = {through: jax.vmap(jax.grad(lambda z, t=through: bounded(z, "clip", t)))(Z) for through in (True, False)}
    assert slopes[True].tolist() == [1.0] * len(Z)
    inside = np.abs(Z) < 1
    np.testing.assert_array_equal(slopes[False][inside], 1.0)
    np.testing.assert_array_equal(slopes[False][np.abs(Z) > 1], 0.0)
    np.testing.assert_allclose(jax.vmap(jax.grad(lambda z: bounded(z, "tanh")))(Z), 1 - np.tanh(Z) ** 2, rtol=1e-4)


@pytest.mark.parametrize("bound", BOUNDS)
def test_latents_lie_within_the_bound_and_what_it_cost_is_reported(bound: str, params: Any) -> None:
    z, extras = encoded(MODEL.clone(bound=bound), params | {"gain": jnp.float32(1.5)})
    free = extras["unbounded"]
    assert free.shape == z.shape == (2, 2, 3, 3) and np.max(np.abs(free)) > 1
    np.testing.assert_allclose(z, bounded(free, bound), atol=1e-6)
    np.testing.assert_allclose(extras["saturated"], np.mean(np.abs(free) > 1, axis=(1, 2, 3)))
    assert (np.max(np.abs(z)) <= 1) == (bound != "none")


def test_gradients_reach_every_parameter(params: Any) -> None:
    def loss(params: Any) -> jax.Array:
        return jnp.sum(jnp.square(MODEL.apply({"params": params}, X) - X))

    slopes = jax.jit(jax.grad(loss))(params | {"gain": jnp.float32(1.0)})
    assert not [path for path, leaf in jax.tree_util.tree_leaves_with_path(slopes) if not np.any(leaf)]


def test_archirfs_network_makes_8x8x16_of_64_pixels_with_the_body_of_stable_diffusions() -> None:
    model = BoundedAutoencoder.preset("imagenet64")
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))["params"]
    z = jax.eval_shape(lambda p, x: model.apply({"params": p}, x, method="encode"), params, jnp.zeros((1, 64, 64, 3)))
    assert z.shape == (1, 8, 8, 16) and params["gain"].shape == ()


@pytest.mark.parametrize("field", ["bound", "gain"])
def test_an_unknown_choice_is_refused(field: str) -> None:
    with pytest.raises(UserError) as caught:
        jax.eval_shape(MODEL.clone(**{field: "relu"}).init, jax.random.key(0), X)
    assert caught.value.field == f"model.{field}"
