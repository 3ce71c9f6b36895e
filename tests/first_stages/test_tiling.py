"""Laws of tiles: weights that add up to 1, and local maps that come out as of the whole image."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archirf_jax.first_stages.tiling import axis, tiled
from archirf_jax.models.autoencoder_tiny import AutoencoderTiny
from archirf_jax.models.convolution import convolve

RANDOM = np.random.default_rng(0)
SIZES = [(8, 2), (8, 4), (7, 3), (5, 1), (6, 5)]  # of a tile and its overlap


@pytest.mark.parametrize(("tile", "overlap"), SIZES)
@pytest.mark.parametrize("cells", [3, 8, 9, 20, 23])
@pytest.mark.parametrize("pixels", [1, 4])
def test_weights_add_up_to_1_and_vanish_at_the_edges_of_tiles(cells: int, tile: int, overlap: int, pixels: int) -> None:
    found = axis(cells, tile, overlap, pixels)
    total = np.zeros(cells * pixels)
    for start, weights in zip(found.starts, found.weights, strict=True):
        total[start * pixels :][: len(weights)] += weights
        near = np.arange(len(weights)) + 0.5 <= pixels * overlap / 4
        assert start == 0 or not np.any(weights[near])
        assert start + found.side == cells or not np.any(weights[::-1][near])
    np.testing.assert_allclose(total, 1, rtol=1e-6)
    assert np.all(found.weights >= 0) and found.starts[0] == 0 and found.starts[-1] + found.side == cells


def test_a_tile_fades_linearly_into_the_next() -> None:
    first = axis(28, 16, 4, 2).weights[0]
    np.testing.assert_allclose(first[-8:], [1, 1, 0.875, 0.625, 0.375, 0.125, 0, 0], atol=1e-6)


def local(reach: int, factor: int = 1) -> Callable[[jax.Array], jax.Array]:
    """A map of which every pixel sees `reach` cells on each side, and zeros beyond the image."""
    kernel = jnp.asarray(np.random.default_rng(1).normal(size=(3, 3, 2, 2)), jnp.float32)

    def compute(x: jax.Array) -> jax.Array:
        for _ in range(reach):
            x = jnp.tanh(convolve(x, kernel))
        return jnp.repeat(jnp.repeat(x, factor, 1), factor, 2)

    return compute


@pytest.mark.parametrize("shape", [(21, 17), (8, 30), (9, 8), (5, 19)])
def test_a_local_decoder_makes_the_whole_image_of_tiles(shape: tuple[int, int]) -> None:
    z = jnp.asarray(RANDOM.normal(size=(2, *shape, 2)), jnp.float32)
    decode = local(1, factor=4)
    whole, found = decode(z), jax.jit(lambda z: tiled(decode, z, 8, 4))(z)
    np.testing.assert_allclose(found, whole, atol=1e-5)
    beyond = local(3, factor=4)  # sees more than a quarter of the overlap
    assert np.max(np.abs(tiled(beyond, z, 8, 4) - beyond(z))) > 1e-3


def test_the_tiny_autoencoder_decodes_and_encodes_tiles_as_the_whole() -> None:
    """Of convolutions and ReLUs alone: two levels see no further than 7 latents."""
    model = AutoencoderTiny.preset("tiny", latent_channels=2)
    images = jnp.asarray(RANDOM.uniform(-1, 1, size=(1, 2 * 45, 2 * 33, 3)), jnp.float32)
    params = jax.jit(model.init)(jax.random.key(0), images[:, :8, :8])["params"]

    def apply(method: str) -> Callable[[jax.Array], jax.Array]:
        return lambda x: jnp.asarray(model.apply({"params": params}, x, method=method))

    z = apply("encode")(images)
    found = tiled(apply("encode"), images, 32, 28, before=2)
    np.testing.assert_allclose(found, z, atol=1e-5)
    np.testing.assert_allclose(tiled(apply("decode"), z, 32, 28), apply("decode")(z), atol=1e-4)


def test_constants_stay_constants_and_one_tile_is_the_whole() -> None:
    z = jnp.asarray(RANDOM.normal(size=(1, 13, 11, 2)), jnp.float32)

    def constant(x: jax.Array) -> jax.Array:
        return jnp.full((len(x), 2 * x.shape[1], 2 * x.shape[2], 1), 3.0)

    found = tiled(constant, z, 4, 2)
    assert found.shape == (1, 26, 22, 1)
    np.testing.assert_allclose(found, 3, rtol=1e-6)
    for tile in (13, 40, None):
        assert np.array_equal(tiled(local(3), z, tile, 4), local(3)(z))
