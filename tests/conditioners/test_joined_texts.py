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


def test_tokens_of_each_encoder_stand_side_by_side_and_the_pooled_is_of_those_that_give_one() -> None:
    found = build(RUNS, PARTS)(FROZEN, dict(BATCH), KEYS)
    first, second = (
        model.apply({"params": params}, ids, jnp.ones_like(MASK))
        for model, params, ids in ((MODEL, PARAMS, IDS), (OTHER, OTHERS, IDS[::-1]))
    )
    np.testing.assert_allclose(found["tokens"][..., :8], first["penultimate"], atol=1e-5)
    np.testing.assert_allclose(found["tokens"][..., 8:], second["penultimate"], atol=1e-5)
    np.testing.assert_allclose(found["pooled"], second["projected"], atol=1e-5)
    assert set(found) == {"tokens", "mask", "pooled"} and bool(np.all(found["mask"]))
    both = build(RUNS, {name: fields | dict(pooled="projected") for name, fields in PARTS.items()})
    assert both(FROZEN, dict(BATCH), KEYS)["pooled"].shape == (3, 3 + 5)


def test_no_text_is_zeros_or_what_the_encoders_make_of_none() -> None:
    empty = build(RUNS, PARTS).null(FROZEN)
    assert empty["tokens"].shape == (6, 12) and np.any(empty["tokens"]) and empty["pooled"].shape == (5,)
    zeros = build(RUNS, {name: fields | dict(null="zeros") for name, fields in PARTS.items()}).null(FROZEN)
    assert not np.any(zeros["tokens"]) and not np.any(zeros["pooled"]) and bool(np.all(zeros["mask"]))


def test_what_was_encoded_before_is_taken_as_given() -> None:
    text = build(RUNS, PARTS)
    made = text(FROZEN, dict(BATCH), KEYS)
    again = text({}, {"tokens": made["tokens"], "pooled": made["pooled"]}, KEYS)
    jax.tree.map(np.testing.assert_array_equal, again, made)
    with pytest.raises(KeyError, match="text_2_ids"):
        text(FROZEN, {"text_ids": IDS}, KEYS)


@pytest.mark.parametrize("parts", [{}, {"other": FIELDS}, {"text": FIELDS, "text_2": FIELDS | dict(length=7)}])
def test_parts_that_do_not_fit_are_refused(parts: dict[str, Any]) -> None:
    with pytest.raises(UserError) as caught:
        build(RUNS, parts)(FROZEN, dict(BATCH), KEYS)
    assert str(caught.value.field).startswith(("conditioners.text", "frozen."))
