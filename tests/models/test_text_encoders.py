"""Laws of text encoders: causality, padding, positions by distance, precision; published sizes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archirf_jax.errors import UserError
from archirf_jax.models.bert import BERT
from archirf_jax.models.clip_text import CLIPText
from archirf_jax.models.t5_encoder import T5Encoder, relative_buckets
from tests.golden.case import programs

SMALL = dict(vocab_size=50, hidden_size=16, depth=2, num_heads=2, mlp_size=24)
MODELS: dict[str, Any] = {
    "clip_text": CLIPText(**SMALL, max_length=9, projection_size=5),
    "t5_encoder": T5Encoder(**SMALL, head_size=4),
    "bert": BERT(**SMALL, max_length=9),
}
IDS = np.random.default_rng(0).integers(3, 40, size=(2, 8)).astype(np.int32)
MASK = np.arange(8)[None] < np.asarray([[8], [5]])
# Published sizes in parameters, of the encoders with their projections.
SIZES: dict[str, tuple[Any, int]] = {
    "CLIP L": (CLIPText.preset("L"), 123_060_480 + 768**2),
    "CLIP bigG": (CLIPText.preset("bigG"), 694_659_840),
    "T5 XXL": (T5Encoder.preset("v1.1-XXL"), 4_762_310_656),
    "MiniLM L6": (BERT.preset("MiniLM-L6"), 22_713_216),
    "BERT base": (BERT.preset("base"), 109_482_240),
}
every_one = pytest.mark.parametrize("name", MODELS)


@pytest.fixture(scope="module")
def params() -> dict[str, Any]:
    return {name: programs(model)[0](jax.random.key(1), IDS)["params"] for name, model in MODELS.items()}


def encoded(name: str, params: dict[str, Any], ids: Any = IDS, mask: Any = None) -> dict[str, np.ndarray]:
    """By the same program with a mask and without one, where all tokens are seen."""
    seen = np.ones(ids.shape, bool) if mask is None else mask
    found = programs(MODELS[name])[1]({"params": params[name]}, ids, seen)
    return {key: np.asarray(value) for key, value in found.items()}


@pytest.mark.parametrize("name", SIZES)
def test_published_encoders_have_their_sizes(name: str) -> None:
    model, size = SIZES[name]
    like = jax.eval_shape(model.init, jax.random.key(0), IDS)["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(like)) == size


@every_one
def test_padding_changes_nothing_that_the_mask_leaves(name: str, params: dict[str, Any]) -> None:
    other = np.where(MASK, IDS, 45)
    first, second = (encoded(name, params, ids, MASK) for ids in (np.where(MASK, IDS, 1), other))
    np.testing.assert_array_equal(first["tokens"][MASK], second["tokens"][MASK])
    if name == "bert":
        np.testing.assert_array_equal(first["sentence"], second["sentence"])
    without = [encoded(name, params, ids)["tokens"][1, 4] for ids in (np.where(MASK, IDS, 1), other)]
    assert np.array_equal(*without) == (name == "clip_text")


def test_a_mask_is_the_text_cut_there(params: dict[str, Any]) -> None:
    for name in MODELS:
        short = encoded(name, params, IDS[1:, :5])["tokens"]
        np.testing.assert_allclose(encoded(name, params, IDS, MASK)["tokens"][1:, :5], short, atol=2e-5)


def test_later_tokens_do_not_change_earlier_ones_of_clip(params: dict[str, Any]) -> None:
    changed = IDS.copy()
    changed[:, 5:] += 3
    first, second = (encoded("clip_text", params, ids) for ids in (IDS, changed))
    for key in ("tokens", "penultimate"):
        np.testing.assert_array_equal(first[key][:, :5], second[key][:, :5])
        assert np.all(np.any(first[key][:, 5:] != second[key][:, 5:], axis=-1))


@pytest.mark.parametrize(("end_id", "places"), [(None, (3, 6)), (44, (5, 2))])
def test_a_text_is_pooled_at_its_largest_id_or_at_the_first_that_ends_it(
    end_id: int | None, places: tuple[int, ...], params: dict[str, Any]
) -> None:
    ids = IDS.copy()
    ids[0, 3], ids[0, 5], ids[1, 2], ids[1, 4], ids[1, 6] = 49, 44, 44, 44, 48
    found = jax.jit(MODELS["clip_text"].clone(end_id=end_id).apply)({"params": params["clip_text"]}, ids)
    np.testing.assert_array_equal(found["pooled"], found["tokens"][np.arange(2), np.asarray(places)])


def test_kinds_of_distances_are_shift_invariant_and_monotone() -> None:
    table = relative_buckets(300, 32, 128)
    assert table.dtype == np.int32 and set(np.unique(table)) == {*range(16), *range(17, 32)}
    np.testing.assert_array_equal(table[1:, 1:], table[:-1, :-1])
    before, behind = table[-1, ::-1], table[0, 1:]  # by distance, from the nearest key on
    for kinds in (before, behind):
        assert np.all(np.diff(kinds) >= 0)
    np.testing.assert_array_equal(behind, before[1:] + 16)
    assert before[:8].tolist() == list(range(8)) and np.all(before[128:] == 15) and before[90] < 15


def test_t5_knows_positions_by_their_distance_alone(params: dict[str, Any]) -> None:
    """A text behind padding is the text, as long as the padding is hidden."""
    moved, mask = np.roll(IDS, 3, axis=1), np.arange(8)[None] >= 3
    found = encoded("t5_encoder", params, moved, np.repeat(mask, 2, axis=0))["tokens"][:, 3:]
    text = encoded("t5_encoder", params, IDS, np.repeat(mask[:, ::-1], 2, axis=0))["tokens"][:, :5]
    np.testing.assert_allclose(found, text, atol=2e-5)
    backwards = encoded("t5_encoder", params, IDS[:, ::-1])["tokens"]
    assert not np.allclose(backwards[:, ::-1], encoded("t5_encoder", params)["tokens"], atol=1e-3)


@pytest.mark.parametrize("gated", [True, False])
def test_t5_in_float16_computes_what_is_beyond_its_numbers_in_float32(gated: bool) -> None:
    model = T5Encoder(**SMALL, head_size=4, gated=gated, activation="gelu_tanh" if gated else "relu")
    params = programs(model)[0](jax.random.key(1), IDS)["params"]
    for block in ("block_0", "block_1"):
        params[block]["mlp"]["out"]["kernel"] *= 1e5
    half = model.clone(dtype="float16")
    wide, narrow = (programs(each)[1]({"params": params}, IDS)["tokens"] for each in (model, half))
    assert narrow.dtype == jnp.float32
    np.testing.assert_allclose(narrow, wide, atol=0.02)


@every_one
def test_half_precision_is_near_and_what_comes_out_float32(name: str, params: dict[str, Any]) -> None:
    model = MODELS[name].clone(dtype="bfloat16")
    found = jax.jit(model.apply)({"params": params[name]}, IDS, MASK)
    exact = encoded(name, params, IDS, MASK)
    for key, value in found.items():
        assert value.dtype == jnp.float32
        scale = np.max(np.abs(exact[key]))
        assert 0 < np.max(np.abs(np.asarray(value) - exact[key])[:, 0]) < 0.05 * scale, key


def test_a_sentence_is_the_mean_over_its_mask_with_length_1(params: dict[str, Any]) -> None:
    found = encoded("bert", params, IDS, MASK)
    np.testing.assert_allclose(found["pooled"][1], found["tokens"][1, :5].mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found["sentence"], axis=-1), 1, atol=1e-6)
    nothing = encoded("bert", params, IDS, np.zeros_like(MASK))
    assert all(np.all(np.isfinite(value)) for value in nothing.values()) and not np.any(nothing["sentence"])


BAD: dict[str, tuple[Any, str]] = {
    "a long text": (MODELS["clip_text"].clone(max_length=7), "model.max_length"),
    "a long sentence": (MODELS["bert"].clone(max_length=7), "model.max_length"),
    "heads": (MODELS["bert"].clone(num_heads=3), "model.num_heads"),
    "an activation": (MODELS["clip_text"].clone(activation="relu"), "model.activation"),
    "another one": (MODELS["t5_encoder"].clone(activation="quick_gelu"), "model.activation"),
    "buckets": (MODELS["t5_encoder"].clone(buckets=6), "model.buckets"),
    "distance": (MODELS["t5_encoder"].clone(max_distance=8), "model.max_distance"),
    "no blocks": (MODELS["clip_text"].clone(depth=0), "model.depth"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_does_not_fit_is_named(what: str) -> None:
    model, field = BAD[what]
    with pytest.raises(UserError) as caught:
        jax.eval_shape(model.init, jax.random.key(0), IDS)
    assert caught.value.field == field
