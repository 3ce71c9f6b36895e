"""Laws of latent diffusion's autoencoder and of the body that it shares: sizes, gradients, precision, refusals."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archirf_jax.errors import UserError
from archirf_jax.models.autoencoder_body import folded, unfolded
from archirf_jax.models.autoencoder_kl import PRESETS, AutoencoderKL
from archirf_jax.models.latents import Gaussian

FIELDS: dict[str, Any] = dict(block_out_channels=(8, 12), layers_per_block=1, norm_num_groups=4, latent_channels=2)
MODEL = AutoencoderKL(**FIELDS, attention_levels=(0,))
X = np.random.default_rng(0).normal(size=(2, 4, 6, 3)).astype(np.float32)  # not square
# diffusers' own counts; SD and SDXL differ by a factor alone.
SIZES = {"sd": 83_653_863, "sdxl": 83_653_863, "sd3": 83_819_683, "flux": 83_819_683}


def count(model: AutoencoderKL, side: int = 64) -> int:
    like = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, side, side, 3)))["params"]
    return sum(leaf.size for leaf in jax.tree.leaves(like))


def drawn(model: AutoencoderKL) -> Any:
    """Parameters of a network, none of them zero."""
    random, like = np.random.default_rng(1), jax.eval_shape(model.init, jax.random.key(0), X)["params"]
    return jax.tree.map(lambda leaf: random.normal(0, 0.2, leaf.shape).astype(np.float32), like)


@pytest.fixture(scope="module")
def params() -> Any:
    return drawn(MODEL)


@functools.partial(jax.jit, static_argnums=0, static_argnames="method")
def apply(model: AutoencoderKL, params: Any, *inputs: Any, method: str | None = None) -> Any:
    return model.apply({"params": params}, *inputs, method=method)


@pytest.mark.parametrize("name", SIZES)
def test_published_autoencoders_have_their_sizes(name: str) -> None:
    model = AutoencoderKL.preset(name)
    assert count(model) == SIZES[name] and model.factor == 8


def test_every_preset_encodes_to_moments_and_decodes_to_images() -> None:
    for name in PRESETS:
        model = AutoencoderKL.preset(name)
        found, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((2, 32, 16, 3)))
        assert found.shape == (2, 32, 16, 3) and found.dtype == jnp.float32


def test_the_reconstruction_is_that_of_the_mode_or_of_a_sample(params: Any) -> None:
    moments = apply(MODEL, params, X, method="encode")
    assert moments.shape == (2, 2, 3, 4)
    noise = np.random.default_rng(1).normal(size=(2, 2, 3, 2)).astype(np.float32)
    for more, z in (((), Gaussian.of(moments).mode()), ((noise,), Gaussian.of(moments).sample(noise))):
        expected = apply(MODEL, params, z, method="decode")
        np.testing.assert_allclose(apply(MODEL, params, X, *more), expected, rtol=1e-5, atol=1e-5)


def test_each_image_is_encoded_and_decoded_alone(params: Any) -> None:
    np.testing.assert_allclose(apply(MODEL, params, X)[:1], apply(MODEL, params, X[:1]), rtol=1e-5, atol=1e-5)


def test_gradients_reach_every_parameter_and_remat_changes_none(params: Any) -> None:
    """The gradient is the slope, by finite differences, of the network that computes nothing again."""
    noise, again, step = np.ones((2, 2, 3, 2), np.float32), MODEL.clone(remat=True), 1e-3
    slopes = jax.jit(jax.grad(lambda p: jnp.sum(jnp.square(again.apply({"params": p}, X, noise)))))(params)
    assert not [path for path, leaf in jax.tree_util.tree_leaves_with_path(slopes) if not np.any(leaf)]
    for seed in range(3):
        random = np.random.default_rng(seed)
        way = jax.tree.map(lambda leaf, random=random: random.normal(0, 0.1, leaf.shape), params)
        ends = [jax.tree.map(lambda a, b, s=s: np.float32(a + s * b), params, way) for s in (step, -step)]
        above, below = (np.sum(np.square(apply(MODEL, end, X, noise), dtype=np.float64)) for end in ends)
        slope = sum(map(np.vdot, *map(jax.tree.leaves, (slopes, way))))
        assert (above - below) / (2 * step) == pytest.approx(slope, rel=1e-2)


def test_in_bfloat16_parameters_and_images_stay_float32(params: Any) -> None:
    short = MODEL.clone(dtype=jnp.bfloat16)
    shapes = jax.eval_shape(short.init, jax.random.key(0), X)["params"]
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype(jnp.float32)}
    found, exact = apply(short, params, X), apply(MODEL, params, X)
    assert found.dtype == jnp.float32 and 0 < np.max(np.abs(found - exact)) < 0.1 * np.max(np.abs(exact))


def test_a_pixel_of_the_finest_level_is_a_square_of_pixels_row_by_row() -> None:
    model = AutoencoderKL(**FIELDS | dict(block_out_channels=(8,)), patch_size=2)
    plain = model.clone(patch_size=1, out_channels=12)
    squares = np.stack(
        [[X[:, i : i + 2, j : j + 2].reshape(2, 12) for j in (0, 2, 4)] for i in (0, 2)]
    )  # (2, 3, B, 12)
    squares = np.moveaxis(squares, 2, 0)
    np.testing.assert_array_equal(folded(X, 2), squares)
    np.testing.assert_array_equal(unfolded(squares, 2), X)
    params = drawn(model)
    assert model.factor == 2 and apply(model, params, X, method="encode").shape == (2, 2, 3, 4)
    np.testing.assert_allclose(
        apply(model, params, X), unfolded(apply(plain, params, squares), 2), rtol=1e-6, atol=1e-6
    )


def test_only_the_encoder_has_further_layers(params: Any) -> None:
    deep = MODEL.clone(encoder_layers=3)
    own = drawn(deep)
    more = {f"down_{level}_block_{i}" for level in (0, 1) for i in (1, 2)}
    more |= {f"down_0_attention_{i}" for i in (1, 2)}
    assert own["encoder"].keys() - params["encoder"].keys() == more
    assert own["decoder"].keys() == params["decoder"].keys()
    zeros = {name: jax.tree.map(np.zeros_like, own["encoder"][name]) for name in more}  # which add nothing
    same = params | {"encoder": params["encoder"] | zeros}
    np.testing.assert_allclose(apply(deep, same, X), apply(MODEL, params, X), rtol=1e-6, atol=1e-6)
    assert np.max(np.abs(apply(deep, own, X) - apply(MODEL, params, X))) > 1e-2


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        (dict(block_out_channels=(8,) * 17), "model.block_out_channels"),
        (dict(block_out_channels=()), "model.block_out_channels"),
        (dict(block_out_channels=(8, 0)), "model.block_out_channels"),
        (dict(norm_num_groups=5), "model.norm_num_groups"),
        (dict(layers_per_block=0), "model.layers_per_block"),
        (dict(encoder_layers=0), "model.encoder_layers"),
        (dict(encoder_layers=1001), "model.encoder_layers"),
        (dict(patch_size=0), "model.patch_size"),
        (dict(patch_size=4), "model.block_out_channels"),  # 6 columns
        (dict(latent_channels=0), "model.latent_channels"),
        (dict(attention_levels=(2,)), "model.attention_levels"),
        (dict(block_out_channels=(8, 8, 8, 8)), "model.block_out_channels"),  # images do not halve so often
    ],
)
def test_fields_out_of_their_range_are_refused(changes: dict[str, Any], field: str) -> None:
    model = AutoencoderKL(**FIELDS | changes)
    with pytest.raises(UserError) as caught:
        jax.eval_shape(model.init, jax.random.key(0), X)
    assert caught.value.field == field
