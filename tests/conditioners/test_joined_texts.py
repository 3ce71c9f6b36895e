"""Laws of texts that several encoders read: joined along the channels, each with ids of its own."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archirf_jax.conditioners.joined_texts import build
from archirf_jax.errors import UserError
from archirf_jax.models.clip_text import CLIPText
from tests.conditioners.test_text import GROUP, IDS, KEYS, MASK, MODEL, PARAMS, run_of

OTHER = CLIPText(vocab_size=20, max_length=8, hidden_size=4, depth=2, num_heads=1, mlp_size=8, projection_size=5)
OTHERS = jax.jit(OTHER.init)(jax.random.key(2), IDS)["params"]
RUNS = {"text": run_of(group=GROUP), "text_2": run_of(OTHER, GROUP)}
FROZEN = {"text": {"model": PARAMS}, "text_2": {"model": OTHERS}}
BATCH = {"text_ids": IDS, "text_2_ids": IDS[::-1]}
FIELDS: dict[str, Any] = dict(tokens="penultimate", masked=False, length=6)
PARTS: dict[str, Any] = {"text": FIELDS, "text_2": FIELDS | dict(pooled="projected")}


def called(text: Any, frozen: Any = FROZEN, batch: Any = BATCH) -> Any:
    return jax.jit(text.__call__)(frozen, dict(batch), KEYS)


def null(text: Any, frozen: Any = FROZEN) -> Any:
    return jax.jit(text.null)(frozen)


def test_tokens_of_each_encoder_stand_side_by_side_and_the_pooled_is_of_those_that_give_one() -> None:
    found = called(build(RUNS, PARTS))
    first, second = (
        jax.jit(model.apply)({"params": params}, ids, jnp.ones_like(MASK))
        for model, params, ids in ((MODEL, PARAMS, IDS), (OTHER, OTHERS, IDS[::-1]))
    )
    np.testing.assert_allclose(found["tokens"][..., :8], first["penultimate"], atol=1e-5)
    np.testing.assert_allclose(found["tokens"][..., 8:], second["penultimate"], atol=1e-5)
    np.testing.assert_allclose(found["pooled"], second["projected"], atol=1e-5)
    assert set(found) == {"tokens", "mask", "pooled"} and bool(np.all(found["mask"]))
    both = build(RUNS, {name: fields | dict(pooled="projected") for name, fields in PARTS.items()})
    assert jax.eval_shape(both, FROZEN, dict(BATCH), KEYS)["pooled"].shape == (3, 3 + 5)


def test_no_text_is_zeros_or_what_the_encoders_make_of_none() -> None:
    empty = null(build(RUNS, PARTS))
    assert empty["tokens"].shape == (6, 12) and np.any(empty["tokens"]) and empty["pooled"].shape == (5,)
    zeros = null(build(RUNS, {name: fields | dict(null="zeros") for name, fields in PARTS.items()}))
    assert not np.any(zeros["tokens"]) and not np.any(zeros["pooled"]) and bool(np.all(zeros["mask"]))


def test_what_was_encoded_before_is_taken_as_given() -> None:
    text = build(RUNS, PARTS)
    made = called(text)
    again = text({}, {"tokens": made["tokens"], "pooled": made["pooled"]}, KEYS)
    jax.tree.map(np.testing.assert_array_equal, again, made)
    with pytest.raises(KeyError, match="text_2_ids"):
        text(FROZEN, {"text_ids": IDS}, KEYS)


ROW: dict[str, Any] = PARTS | {"text_3": dict(length=5, masked=False)}
WIDER = CLIPText(vocab_size=20, max_length=8, hidden_size=14, depth=1, num_heads=1, mlp_size=8)
ALL = RUNS | {"text_3": run_of(WIDER, GROUP)}
WIDE = FROZEN | {"text_3": {"model": jax.jit(WIDER.init)(jax.random.key(3), IDS)["params"]}}


def test_tokens_of_an_encoder_that_follows_come_after_the_others_which_zeros_fill_up() -> None:
    text = build(ALL, ROW, following=("text_3",), width=14)
    joined, batch = called(build(RUNS, PARTS)), BATCH | {"text_3_ids": IDS[:, :5]}
    found = called(text, WIDE, batch)
    assert found["tokens"].shape == (3, 6 + 5, 14) and found["mask"].shape == (3, 11) and bool(np.all(found["mask"]))
    np.testing.assert_array_equal(found["tokens"][:, :6, :12], joined["tokens"])
    assert not np.any(found["tokens"][:, :6, 12:])
    last = jax.jit(WIDER.apply)({"params": WIDE["text_3"]["model"]}, IDS[:, :5], None)
    np.testing.assert_allclose(found["tokens"][:, 6:], last["tokens"], atol=1e-5)
    np.testing.assert_array_equal(found["pooled"], joined["pooled"])
    empty = null(text, WIDE)
    assert empty["tokens"].shape == (11, 14) and empty["mask"].shape == (11,) and np.any(empty["tokens"][6:])


def test_zeros_take_the_place_of_an_encoder_that_is_left_out() -> None:
    text = build(RUNS, PARTS, width=14, zeros=5)
    found, empty = called(text), null(text)
    assert found["tokens"].shape == (3, 11, 14) and empty["tokens"].shape == (11, 14)
    for made in (found, empty):
        assert bool(np.all(made["mask"])) and not np.any(made["tokens"][..., 6:, :]) and np.any(made["tokens"])


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        (dict(following=("text_4",)), "conditioners.text.following"),
        (dict(following=("text", "text_2", "text_3")), "conditioners.text.parts"),
        (dict(following=("text_3",)), "conditioners.text.width"),  # 12 channels of those that are joined, and 14
        (dict(following=("text_3",), width=13), "conditioners.text.width"),
    ],
)
def test_encoders_that_cannot_follow_are_refused(fields: dict[str, Any], field: str) -> None:
    row = ROW if "text_4" not in fields["following"] else PARTS
    with pytest.raises(UserError) as caught:
        build(ALL, row, **fields)(WIDE, BATCH | {"text_3_ids": IDS[:, :5]}, KEYS)
    assert caught.value.field == field


@pytest.mark.parametrize("parts", [{}, {"other": FIELDS}, {"text": FIELDS, "text_2": FIELDS | dict(length=7)}])
def test_parts_that_do_not_fit_are_refused(parts: dict[str, Any]) -> None:
    with pytest.raises(UserError) as caught:
        build(RUNS, parts)(FROZEN, dict(BATCH), KEYS)
    assert str(caught.value.field).startswith(("conditioners.text", "frozen."))
