"""Laws of the tiny autoencoder: published sizes, bounded inputs of the decoder, gradients, refusals."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archirf_jax.errors import UserError
from archirf_jax.models.autoencoder_tiny import PRESETS, AutoencoderTiny

MODEL = AutoencoderTiny(width=6, decoder_width=5, num_encoder_blocks=(1, 2), num_decoder_blocks=(1, 1))
X = np.random.default_rng(0).uniform(-1, 1, size=(2, 4, 6, 3)).astype(np.float32)
SIZES = {"taesd": 2_445_063, "taesd3": 2_458_899}  # diffusers' own counts


@pytest.fixture(scope="module")
def params() -> Any:
    random, shapes = np.random.default_rng(2), jax.eval_shape(MODEL.init, jax.random.key(0), X)["params"]
    return jax.tree.map(lambda leaf: random.normal(0, 0.15, leaf.shape).astype(np.float32), shapes)


@jax.jit
def decode(params: Any, z: Any) -> Any:
    return MODEL.apply({"params": params}, z, method="decode")


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_encodes_and_decodes_and_published_ones_have_their_size(name: str) -> None:
    model = AutoencoderTiny.preset(name)
    found, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((1, 32, 16, 3)))
    assert found.shape == (1, 32, 16, 3)
    size = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert size == SIZES.get(name, size) and (name == "tiny" or model.factor == 8)


def test_latents_of_any_size_decode_to_what_those_at_3_decode_to(params: Any) -> None:
    z = np.random.default_rng(1).normal(size=(1, 2, 3, 4)).astype(np.float32)
    huge = decode(params, 1e4 * np.sign(z))
    np.testing.assert_allclose(huge, decode(params, 1e3 * np.sign(z)), rtol=1e-6)
    assert np.max(np.abs(huge - decode(params, z))) > 1e-3


def test_latents_as_pictures_fill_0_to_1() -> None:
    z = jnp.asarray([-100.0, -3.0, 0.0, 1.5, 3.0, 100.0])
    np.testing.assert_allclose(MODEL.to_picture(z), [0, 0, 0.5, 0.75, 1, 1])


def test_gradients_reach_every_parameter(params: Any) -> None:
    slopes = jax.jit(jax.grad(lambda p: jnp.sum(jnp.square(MODEL.apply({"params": p}, X) - X))))(params)
    assert not [path for path, leaf in jax.tree_util.tree_leaves_with_path(slopes) if not np.any(leaf)]


def test_in_bfloat16_parameters_and_images_stay_float32(params: Any) -> None:
    short = MODEL.clone(dtype=jnp.bfloat16)
    found, exact = (jax.jit(model.apply)({"params": params}, X) for model in (short, MODEL))
    assert found.dtype == jnp.float32 and 0 < np.max(np.abs(found - exact)) < 0.1


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        (dict(width=0), "model.width"),
        (dict(num_encoder_blocks=(1,) * 17), "model.num_encoder_blocks"),
        (dict(num_encoder_blocks=()), "model.num_encoder_blocks"),
        (dict(num_decoder_blocks=(1, -1)), "model.num_decoder_blocks"),
        (dict(num_decoder_blocks=(1, 1, 1)), "model.num_decoder_blocks"),
        (dict(num_encoder_blocks=(1,) * 4, num_decoder_blocks=(1,) * 4), "model.num_encoder_blocks"),  # 4x6 pixels
    ],
)
def test_fields_out_of_their_range_are_refused(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(UserError) as caught:
        jax.eval_shape(MODEL.clone(**changes).init, jax.random.key(0), X)
    assert caught.value.field == field
