"""Laws of conditioners: each example alone, what the batch holds is taken as given, a null is one example."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archirf_jax.conditioners.given import Given
from archirf_jax.conditioners.label import Label
from archirf_jax.conditioners.merged import Merged
from archirf_jax.contracts import Batch, Condition, Frozen

KEYS = jax.random.split(jax.random.key(0), 4)
SHAPES = {"tokens": (3, 2), "mask": (3,), "pooled": (5,)}
BATCH: Batch = {
    "image": jnp.ones((4, 2, 2, 1)),
    "label": jnp.arange(4, dtype=jnp.int32),
    "tokens": jnp.arange(24.0).reshape(4, 3, 2),
    "mask": jnp.ones((4, 3), bool),
    "pooled": jnp.ones((4, 5)),
}
PARTS: dict[str, Any] = {"label": Label(7), "text": Given(SHAPES), "size": Given({"size": (2,)}, droppable=False)}
ALL = {**PARTS, "merged": Merged(PARTS)}
every_one = pytest.mark.parametrize("conditioner", ALL.values(), ids=ALL.keys())


@dataclasses.dataclass(frozen=True)
class Drawing:
    """Draws a number for each example."""

    name: str

    def __call__(self, frozen: Frozen, batch: Batch, keys: jax.Array) -> Condition:
        return {self.name: jax.vmap(jax.random.normal)(keys)}

    def null(self, frozen: Frozen) -> Condition:
        return {}


@every_one
def test_a_null_is_one_example_of_the_condition_whether_or_not_the_batch_holds_it(conditioner: Any) -> None:
    null = conditioner.null({})
    for batch in (BATCH | {"size": jnp.ones((4, 2))}, {}):
        condition = conditioner({}, batch, KEYS)
        assert set(null) <= set(condition)
        for name, value in condition.items():
            assert len(value) == 4
            assert name not in null or (null[name].shape, null[name].dtype) == (value.shape[1:], value.dtype), name


def test_what_the_batch_holds_is_taken_as_given_and_the_rest_of_it_left() -> None:
    condition = Merged(PARTS)({}, BATCH, KEYS)
    assert set(condition) == {"label", "tokens", "mask", "pooled", "size"}
    for name in ("label", "tokens", "mask", "pooled"):
        assert condition[name] is BATCH[name]


def test_the_null_label_is_the_number_of_classes_and_texts_are_none_by_zeros() -> None:
    null = Merged(PARTS).null({})
    assert set(null) == {"label", "tokens", "mask", "pooled"}
    assert null["label"] == 7 and null["label"].dtype == jnp.int32
    assert not any(np.any(null[name]) for name in SHAPES)


def test_parts_draw_apart_and_each_example_by_its_key_alone() -> None:
    merged = Merged({"a": Drawing("one"), "b": Drawing("two")})
    condition = merged({}, BATCH, KEYS)
    assert len(np.unique(np.concatenate([condition["one"], condition["two"]]))) == 8
    alone = merged({}, {}, KEYS[2:3])
    jax.tree.map(lambda each, all_: np.testing.assert_array_equal(each[0], all_[2]), alone, condition)
    others = Merged({"c": Drawing("three"), "a": Drawing("one")})({}, BATCH, KEYS)
    np.testing.assert_array_equal(others["one"], condition["one"])
