"""Laws of LPIPS: a distance of images, whose gradient is finite; published sizes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

from archirf_jax.errors import UserError
from archirf_jax.models.lpips import LPIPS, NETS, pooled

RANDOM = np.random.default_rng(0)
A, B = (RANDOM.uniform(-1, 1, size=(2, 40, 36, 3)).astype(np.float32) for _ in range(2))
MODEL = LPIPS("alex")
APPLY = jax.jit(MODEL.apply)  # one for all tests, so that each shape is compiled once
# Of torchvision's features, and a weight a channel.
SIZES = {"vgg": 14_714_688 + 1472, "alex": 2_469_696 + 1152}


@pytest.fixture(scope="module")
def params() -> Any:
    return jax.jit(MODEL.init)(jax.random.key(0), A, B)["params"]


def distance(params: Any, a: Any, b: Any) -> Any:
    return APPLY({"params": params}, a, b)


@pytest.mark.parametrize("net", NETS)
def test_published_networks_have_their_sizes(net: str) -> None:
    like = jax.eval_shape(LPIPS(net).init, jax.random.key(0), A, B)["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(like)) == SIZES[net]


def test_it_is_0_of_an_image_and_itself_symmetric_and_above_0_of_others(params: Any) -> None:
    found = distance(params, A, B)
    assert found.shape == (2,) and np.all(found > 0)
    assert distance(params, A, A).tolist() == [0.0, 0.0]
    np.testing.assert_allclose(distance(params, B, A), found, rtol=1e-5)
    np.testing.assert_allclose(distance(params, A[1:], B[1:]), found[1:], rtol=1e-5)


def test_it_grows_with_noise(params: Any) -> None:
    noise = RANDOM.normal(size=A.shape).astype(np.float32)
    found = [distance(params, A, A + scale * noise) for scale in (0.05, 0.2, 0.8)]
    assert np.all(found[0] < found[1]) and np.all(found[1] < found[2])


def test_heads_below_0_do_not_count(params: Any) -> None:
    heads = {f"head_{i}": np.asarray(params[f"head_{i}"]) for i in range(5)}
    halved, negative = (
        {name: np.where(np.arange(len(head)) % 2 == 0, np.float32(value), head) for name, head in heads.items()}
        for value in (0, -3)
    )
    np.testing.assert_array_equal(distance(params | negative, A, B), distance(params | halved, A, B))
    assert np.all(distance(params | halved, A, B) < distance(params, A, B))


def slopes(params: Any, a: Any, b: Any) -> Any:
    return jax.grad(lambda a: jnp.sum(jnp.asarray(MODEL.apply({"params": params}, a, b))))(a)


def test_images_have_a_gradient(params: Any) -> None:
    found = jax.jit(slopes)(params, A, B)
    assert np.all(np.isfinite(found)) and np.all(np.any(found, axis=(1, 2, 3)))


@pytest.mark.slow
def test_where_no_feature_is_above_0_every_number_on_the_way_to_the_gradient_is_finite(params: Any) -> None:
    """Also those that are not used: who looks for the first that is not would stop there."""
    dead = jax.tree.map(lambda leaf: -jnp.abs(leaf) if leaf.ndim == 4 else leaf, params)
    light = np.full((1, 31, 31, 3), 0.9, np.float32)  # above the shift: every convolution is below 0
    error, found = jax.jit(checkify.checkify(slopes, errors=checkify.nan_checks))(dead, light, light)
    error.throw()
    assert not np.any(found)


def test_grey_images_are_colour_images_of_equal_channels(params: Any) -> None:
    a, b = A[..., :1], B[..., :1]
    wide = [np.repeat(x, 3, axis=-1) for x in (a, b)]
    np.testing.assert_allclose(distance(params, a, b), distance(params, *wide), rtol=1e-6)


@pytest.mark.parametrize(("size", "shape"), [(2, (6, 8)), (2, (5, 7)), (3, (7, 9)), (3, (8, 6))])
def test_pools_take_the_largest_of_every_window(size: int, shape: tuple[int, int]) -> None:
    x = RANDOM.normal(size=(1, *shape, 2))
    rows, columns = ((side - size) // 2 + 1 for side in shape)
    expected = [
        [x[:, 2 * i : 2 * i + size, 2 * j : 2 * j + size].max((1, 2)) for j in range(columns)] for i in range(rows)
    ]
    np.testing.assert_allclose(pooled(jnp.asarray(x), size), np.moveaxis(np.asarray(expected), 2, 0), rtol=1e-6)


@pytest.mark.parametrize(
    ("model", "shape", "field"),
    [
        (LPIPS("squeeze"), (1, 64, 64, 3), "model.net"),
        (LPIPS("vgg"), (1, 8, 64, 3), "data.image_size"),
        (MODEL, (1, 16, 16, 3), "data.image_size"),
        (MODEL, (1, 64, 64, 4), "data.channels"),
    ],
)
def test_what_it_does_not_take_is_refused(model: LPIPS, shape: tuple[int, ...], field: str) -> None:
    images = jnp.zeros(shape)
    with pytest.raises(UserError) as caught:
        jax.eval_shape(model.init, jax.random.key(0), images, images)
    assert caught.value.field == field
