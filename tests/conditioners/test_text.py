"""Laws of texts as conditions: made of ids or taken as given, with what stands for none, of one encoder or several."""

from __future__ import annotations

import pathlib
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from archirf_jax.conditioners.merged import Merged
from archirf_jax.conditioners.text import build
from archirf_jax.errors import UserError
from archirf_jax.models.clip_text import CLIPText

MODEL = CLIPText(vocab_size=20, max_length=8, hidden_size=8, depth=2, num_heads=2, mlp_size=8, projection_size=3)
EMPTY, PADDING, LENGTH = [18, 19], 0, 6
IDS = jnp.asarray([[18, 4, 7, 19, 0, 0], [18, 19, 0, 0, 0, 0], [18, 1, 2, 3, 5, 19]], jnp.int32)
MASK = jnp.arange(6)[None] < jnp.asarray([[4], [2], [6]])
KEYS = jax.random.split(jax.random.key(0), 3)
GROUP = dict(length=8, pad_id=PADDING, empty=EMPTY, digest="x")
PARAMS = jax.jit(MODEL.init)(jax.random.key(1), IDS)["params"]
FROZEN = {"text": {"model": PARAMS}, "clip": {"model": PARAMS}}


def run_of(model: Any = MODEL, group: dict[str, Any] | None = None) -> Any:
    config = ml_collections.ConfigDict({"tokenizer": group} if group else {})
    return SimpleNamespace(task=SimpleNamespace(model=model), config=config, directory=pathlib.Path("runs/x"))


RUNS = {"text": run_of(group=GROUP), "clip": run_of(group=GROUP)}


def conditioner(**fields: Any) -> Any:
    return build(RUNS, **{"length": LENGTH, **fields})


@pytest.mark.parametrize(("masked", "seen"), [(True, MASK), (False, jnp.ones_like(MASK))])
def test_conditions_are_what_the_encoder_makes_of_ids(masked: bool, seen: jax.Array) -> None:
    text = conditioner(tokens="penultimate", pooled="projected", masked=masked)
    found = text(FROZEN, {"ids": IDS, "mask": MASK}, KEYS)
    made = MODEL.apply({"params": PARAMS}, IDS, seen)
    assert set(found) == {"tokens", "mask", "pooled"} and found["mask"].dtype == bool
    np.testing.assert_array_equal(found["mask"], seen)
    for ours, theirs in (("tokens", "penultimate"), ("pooled", "projected")):
        np.testing.assert_allclose(found[ours], made[theirs], atol=1e-5)


@pytest.mark.parametrize("masked", [True, False])
def test_no_text_is_the_encoders_own_answer_to_an_empty_one(masked: bool) -> None:
    text = conditioner(pooled="pooled", masked=masked)
    null, found = text.null(FROZEN), text(FROZEN, {"ids": IDS, "mask": MASK}, KEYS)
    assert set(null) == set(found)
    for name, value in null.items():
        np.testing.assert_allclose(value, found[name][1], atol=1e-6)


@pytest.mark.parametrize(("kind", "attended"), [("zeros", True), ("absent", False)])
def test_no_text_may_be_zeros_or_no_tokens(kind: str, attended: bool) -> None:
    null = conditioner(null=kind, pooled="pooled").null(FROZEN)
    assert not np.any(null["tokens"]) and not np.any(null["pooled"]) and bool(np.all(null["mask"] == attended))
    assert null["tokens"].shape == (LENGTH, 8) and null["pooled"].shape == (8,)


def test_what_was_encoded_before_is_taken_as_given_and_nothing_is_encoded() -> None:
    text = conditioner(pooled="pooled")
    batch = {"ids": IDS, "mask": MASK}
    made = text(FROZEN, batch, KEYS)
    kept = {"tokens": made["tokens"].astype(jnp.float16), "pooled": made["pooled"], "mask": MASK}
    again = text({}, kept, KEYS)
    assert again["tokens"].dtype == jnp.float32
    for name, value in again.items():
        np.testing.assert_allclose(value, made[name], atol=5e-3)
    with pytest.raises(KeyError, match="pooled"):
        text({}, {"tokens": made["tokens"]}, KEYS)
    with pytest.raises(KeyError, match="ids"):
        text(FROZEN, {}, KEYS)


def test_several_encoders_have_keys_of_their_own() -> None:
    one, two = conditioner(), conditioner(run="clip", prefix="clip_", pooled="projected")
    batch = {"ids": IDS, "mask": MASK, "clip_ids": IDS[::-1], "clip_mask": MASK[::-1]}
    found = Merged({"one": one, "two": two})(FROZEN, batch, KEYS)
    assert set(found) == {"tokens", "mask", "clip_tokens", "clip_mask", "clip_pooled"}
    np.testing.assert_allclose(found["clip_tokens"][::-1], found["tokens"], atol=1e-6)


def test_an_encoder_may_compute_in_another_type() -> None:
    half = conditioner(dtype="bfloat16")(FROZEN, {"ids": IDS, "mask": MASK}, KEYS)["tokens"]
    exact = conditioner()(FROZEN, {"ids": IDS, "mask": MASK}, KEYS)["tokens"]
    assert half.dtype == jnp.float32 and 0 < float(jnp.max(jnp.abs(half - exact))) < 0.1


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no run": (dict(runs={}), "conditioners.text.run"),
    "a run of something else": (dict(runs={"text": run_of()}), "frozen.text"),
    "too long": (dict(length=9), "conditioners.text.length"),
    "no room for an end": (dict(length=2), "conditioners.text.length"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_cannot_be_is_named(what: str) -> None:
    fields, field = BAD[what]
    with pytest.raises(UserError) as caught:
        build(**{"runs": RUNS, **fields})
    assert caught.value.field == field


@pytest.mark.parametrize("fields", [{"tokens": "pooled"}, {"pooled": "tokens"}, {"pooled": "sentence"}])
def test_an_array_that_the_encoder_does_not_give_is_named(fields: dict[str, str]) -> None:
    with pytest.raises(UserError) as caught:
        conditioner(**fields).null(FROZEN)
    assert caught.value.field == f"conditioners.text.{next(iter(fields))}"
