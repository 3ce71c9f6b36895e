"""Laws of codebooks: the nearest vector, gradients past it, both parts of the loss, usage and perplexity."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archirf_jax.errors import UserError
from archirf_jax.models import binding
from archirf_jax.models.vq_model import NORM_TYPES, PRESETS, Codebook, VQModel, nearest_codes, statistics

FIELDS: dict[str, Any] = dict(block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4, num_vq_embeddings=11)
MODEL = VQModel(**FIELDS, vq_embed_dim=2)
RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(2, 4, 6, 3)).astype(np.float32)
Z = jnp.asarray(RANDOM.normal(size=(2, 3, 4, 2)), jnp.float32)
TABLE = jnp.asarray(RANDOM.normal(size=(11, 2)), jnp.float32)
APPLY = jax.jit(MODEL.apply, static_argnames="method")


def quantized(z: Any, table: Any = TABLE, commitment: float = 0.25, codebook: float = 1.0) -> Any:
    return Codebook(*table.shape, commitment, codebook).apply({"params": {"embedding": table}}, z)


def test_every_latent_becomes_the_vector_at_the_smallest_distance() -> None:
    found = quantized(Z)
    distances = np.linalg.norm(np.asarray(Z)[..., None, :] - np.asarray(TABLE), axis=-1)
    np.testing.assert_array_equal(found.indices, np.argmin(distances, axis=-1))
    np.testing.assert_array_equal(found.z, np.asarray(TABLE)[found.indices])
    np.testing.assert_array_equal(nearest_codes(TABLE, TABLE), np.arange(11))  # a code is its own


def test_gradients_pass_the_codebook_as_if_it_were_not_there() -> None:
    way = jnp.asarray(RANDOM.normal(size=Z.shape), jnp.float32)
    by_z, by_table = jax.grad(lambda z, table: jnp.sum(quantized(z, table).z * way), (0, 1))(Z, TABLE)
    np.testing.assert_allclose(by_z, way, rtol=1e-6)
    assert np.all(by_table == 0)


@pytest.mark.parametrize(("commitment", "codebook"), [(1.0, 0.0), (0.0, 1.0), (0.25, 1.0)])
def test_the_loss_pulls_latents_to_codes_and_codes_to_latents_by_their_weights(
    commitment: float, codebook: float
) -> None:
    found = quantized(Z, TABLE, commitment, codebook)
    distance = np.asarray(Z) - np.asarray(found.z)
    expected = (commitment + codebook) * np.mean(distance**2, axis=(1, 2, 3))
    np.testing.assert_allclose(found.loss, expected, rtol=1e-5)

    def loss(z: Any, table: Any) -> jax.Array:
        return jnp.sum(quantized(z, table, commitment, codebook).loss)

    by_z, by_table = jax.grad(loss, (0, 1))(Z, TABLE)
    np.testing.assert_allclose(by_z, commitment * 2 * distance / distance[0].size, rtol=1e-4, atol=1e-7)
    pulls = np.zeros((11, 2))
    np.add.at(pulls, np.asarray(found.indices), -codebook * 2 * distance / distance[0].size)
    np.testing.assert_allclose(by_table, pulls, rtol=1e-4, atol=1e-6)


def test_usage_and_perplexity_of_one_code_and_of_all_alike() -> None:
    for indices, usage, perplexity in (
        (jnp.zeros((2, 3), jnp.int32), 1 / 8, 1),
        (jnp.arange(8).reshape(2, 4), 1, 8),
        (jnp.asarray([[0, 0, 1, 1]]), 2 / 8, 2),
    ):
        np.testing.assert_allclose(statistics(indices, 8), (usage, perplexity), rtol=1e-5)


def drawn(model: VQModel) -> Any:
    """Parameters of a network, none of them zero."""
    random, like = np.random.default_rng(1), jax.eval_shape(model.init, jax.random.key(0), X)["params"]
    return jax.tree.map(lambda leaf: random.normal(0, 0.2, leaf.shape).astype(np.float32), like)


@pytest.fixture(scope="module")
def params() -> Any:
    return drawn(MODEL)


def test_the_network_sows_codes_their_loss_and_statistics(params: Any) -> None:
    wide = params | {"codebook": {"embedding": TABLE}}
    images, extras = jax.jit(lambda params: binding.call(MODEL, params, X))(wide)
    assert images.shape == X.shape and extras["codes"].shape == (2, 2, 3) and extras["codebook_loss"].shape == (2,)
    found = statistics(extras["codes"], 11)
    np.testing.assert_allclose((extras["codebook_usage"], extras["codebook_perplexity"]), found)


def test_codes_decode_to_what_their_latents_decode_to(params: Any) -> None:
    wide = params | {"codebook": {"embedding": TABLE}}
    z = APPLY({"params": wide}, X, method="encode")
    codes: Any = APPLY({"params": wide}, z, method="quantize")
    images = [APPLY({"params": wide}, each, method="decode") for each in (z, codes.z)]
    given = jax.jit(lambda params, z: MODEL.apply({"params": params}, z, False, method="decode"))
    images.append(given(wide, codes.z))
    np.testing.assert_allclose(images[0], images[1], atol=1e-5)
    np.testing.assert_allclose(images[0], images[2], atol=1e-5)


@pytest.mark.parametrize("norm_type", [pytest.param(n, marks=[pytest.mark.slow] * (n != "group")) for n in NORM_TYPES])
def test_gradients_reach_every_parameter(norm_type: str) -> None:
    model = VQModel(**FIELDS | dict(block_out_channels=(32, 32)), norm_type=norm_type)

    def loss(params: Any) -> jax.Array:
        images, extras = binding.call(model, params, X)
        return jnp.sum(jnp.square(images - X)) + jnp.sum(extras["codebook_loss"])

    slopes = jax.jit(jax.grad(loss))(drawn(model))
    assert not [path for path, leaf in jax.tree_util.tree_leaves_with_path(slopes) if not np.any(leaf)]


# diffusers' own counts.
SIZES = {"f4": 55_322_782, "f8": 67_717_295, "movq": 67_832_495}


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_encodes_and_decodes_and_published_ones_have_their_size(name: str) -> None:
    model = VQModel.preset(name)
    found, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((1, 32, 16, 3)))
    assert found.shape == (1, 32, 16, 3)
    size = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert size == SIZES.get(name, size)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        (dict(norm_type="batch"), "model.norm_type"),
        (dict(num_vq_embeddings=0), "model.num_vq_embeddings"),
        (dict(vq_embed_dim=0), "model.vq_embed_dim"),
        (dict(commitment_weight=-1.0), "model.commitment_weight"),
        (dict(norm_type="spatial"), "model.block_out_channels"),  # 8 channels do not fall into 32 groups
    ],
)
def test_fields_out_of_their_range_are_refused(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(UserError) as caught:
        jax.eval_shape(MODEL.clone(**changes).init, jax.random.key(0), X)
    assert caught.value.field == field
