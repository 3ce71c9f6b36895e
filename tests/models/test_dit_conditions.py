"""Laws of what else conditions a DiT: no label, texts, a second time, a smaller image."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archirf_jax.errors import UserError
from archirf_jax.models.dit import MODULATIONS, DiT
from archirf_jax.models.layers import resized
from tests.models import test_dit
from tests.models.test_dit import LABELS, RANDOM, B, T, X, stir

FIELDS = test_dit.FIELDS | dict(depth=1)
TOKENS = RANDOM.normal(size=(B, 5, 7)).astype(np.float32)
MASK = np.asarray(
    [[False, True, True, False, True], [True, True, False, True, False], [True] * 3 + [False] * 2, [False] * 5]
)
TEXT = {"tokens": TOKENS, "mask": MASK}
TEXTS = DiT(**FIELDS | dict(conditioning="cross_attention", context_width=7))
SMALL = RANDOM.normal(size=(B, 2, 3, 3)).astype(np.float32)


def shapes(model: DiT, condition: Any, s: Any = None) -> Any:
    return jax.eval_shape(lambda: model.init(jax.random.key(0), X, T, condition, s)["params"])


@functools.partial(jax.jit, static_argnums=0)
def run(model: DiT, params: Any, x: Any, t: Any, condition: Any, s: Any = None) -> Any:
    return model.apply({"params": params}, x, t, condition, s)


def differ(a: Any, b: Any) -> bool:
    """Whether every example differs."""
    return bool(np.all(np.abs(a - b).max((1, 2, 3)) > 1e-3))


@pytest.mark.parametrize("design", MODULATIONS)
def test_without_classes_there_is_no_embedding_and_labels_are_ignored(design: str) -> None:
    model = DiT(**FIELDS | dict(num_classes=None, conditioning=design))
    params = stir(shapes(model, {}))
    assert "label_embedding" not in params
    programs = [
        str(jax.make_jaxpr(lambda params, y=y: model.apply({"params": params}, X, T, y))(params)) for y in (LABELS, {})
    ]
    assert programs[0] == programs[1]


@pytest.mark.parametrize("scan", [False, True])
def test_tokens_that_are_masked_out_are_as_if_they_were_not_there(scan: bool) -> None:
    model = TEXTS.clone(scan=scan, remat=scan)
    params = stir(shapes(model, TEXT | LABELS))
    out = np.asarray(run(model, params, X, T, TEXT | LABELS))
    three = np.stack([tokens[some] if some.any() else tokens[:3] for tokens, some in zip(TOKENS, MASK, strict=True)])
    for tokens, rows in ((three, [0, 1, 2]), (three[:, :0], [3])):
        alone = np.asarray(run(model, params, X, T, LABELS | {"tokens": tokens}))
        np.testing.assert_allclose(out[rows], alone[rows], atol=1e-4)
    other = TEXT | LABELS | {"tokens": np.where(MASK[..., None], TOKENS, 1e3)}
    np.testing.assert_array_equal(run(model, params, X, T, other), out)
    assert differ(run(model, params, X, T, TEXT | LABELS | {"tokens": -TOKENS})[:3], out[:3])


def test_a_text_stands_after_time_and_label_and_is_read_with_or_without_one() -> None:
    plain = TEXTS.clone(context_width=None)
    params = stir(shapes(TEXTS, TEXT | LABELS))
    assert set(params) - set(shapes(plain, LABELS)) == {"context"}
    without = {name: leaf for name, leaf in params.items() if name != "context"}
    nothing = {"tokens": TOKENS, "mask": np.zeros_like(MASK)}
    np.testing.assert_allclose(run(TEXTS, params, X, T, nothing | LABELS), run(plain, without, X, T, LABELS), atol=1e-4)
    assert "label_embedding" not in shapes(TEXTS, TEXT)
    assert differ(run(TEXTS, params, X, T, TEXT), run(TEXTS, params, X, T, TEXT | LABELS))


@pytest.mark.parametrize("design", MODULATIONS)
def test_a_second_time_moves_the_answer_and_none_is_the_first(design: str) -> None:
    model = DiT(**FIELDS | dict(two_times=True, conditioning=design))
    params = stir(shapes(model, LABELS))
    assert shapes(model, LABELS, T) == shapes(model, LABELS)
    assert set(params) - set(shapes(model.clone(two_times=False), LABELS)) == {"interval_embedding"}
    out = run(model, params, X, T, LABELS)
    np.testing.assert_array_equal(run(model, params, X, T, LABELS, T), out)
    assert differ(run(model, params, X, T, LABELS, T - 50), out)


def test_a_smaller_image_is_resized_and_concatenated_and_its_noise_level_counts() -> None:
    model, given = DiT(**FIELDS | dict(low_res=True)), LABELS | {"low_res": SMALL}
    params = stir(shapes(model, given))
    wide = np.concatenate([X, resized(jnp.asarray(SMALL), *X.shape[1:3])], axis=-1)
    embedded = jax.eval_shape(lambda: DiT(**FIELDS).init(jax.random.key(0), wide, T, LABELS))["params"]
    assert params["patch_embedding"]["kernel"].shape == embedded["patch_embedding"]["kernel"].shape
    out = run(model, params, X, T, given)
    assert out.shape == X.shape and differ(run(model, params, X, T, given | {"low_res": -SMALL}), out)

    level = given | {"noise_level": np.linspace(0.1, 0.9, B).astype(np.float32)}
    params = stir(shapes(model, level))
    assert set(params) - set(shapes(model, given)) == {"noise_embedding"}
    other = level | {"noise_level": level["noise_level"][::-1]}
    assert differ(run(model, params, X, T, other), run(model, params, X, T, level))


@pytest.mark.parametrize(
    ("fields", "condition", "field"),
    [
        ({}, {}, "condition"),
        (dict(low_res=True), LABELS, "condition"),
        (dict(conditioning="cross_attention", context_width=7), LABELS, "condition"),
        (dict(conditioning="cross_attention", context_width=8), TEXT, "model.context_width"),
    ],
)
def test_conditions_that_are_missing_or_do_not_fit_are_named(fields: Any, condition: Any, field: str) -> None:
    with pytest.raises(UserError) as caught:
        shapes(DiT(**FIELDS | fields), condition)
    assert caught.value.field == field


def test_each_number_of_a_size_is_read_in_its_place() -> None:
    model = DiT(**FIELDS | dict(size_numbers=6))
    size = np.asarray([[30, 40, 0, 5, 16, 16]] * B, np.float32)
    params = stir(shapes(model, LABELS | {"size": size}))
    out = run(model, params, X, T, LABELS | {"size": size})
    for place in range(6):
        other = size.copy()
        other[:, place] += 3
        assert differ(run(model, params, X, T, LABELS | {"size": other}), out)
    assert differ(run(model, params, X, T, LABELS | {"size": size[:, [1, 0, 2, 3, 4, 5]]}), out)
    for wrong in ({}, {"size": size[:, :4]}):
        with pytest.raises(UserError):
            shapes(model, LABELS | wrong)
