"""Laws of the context stream: texts from outside, learned tokens of classes, tables that nothing trains."""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archirf_jax.errors import UserError
from archirf_jax.models.conditions import Context, read_table

RANDOM = np.random.default_rng(0)
TABLE = RANDOM.normal(size=(3, 2, 5))  # classes, tokens, features; float64, as somebody may save it
Y = np.asarray([0, 2, 3, 1], np.int32)  # 3 is the null label
LABELS = {"label": Y}
TEXT = {"tokens": RANDOM.normal(size=(4, 6, 7)).astype(np.float32), "pooled": np.ones((4, 9), np.float32)}
CLASSES = Context("class_tokens", num_classes=3, width=8, class_tokens=2)
TEXTS = Context("text", num_classes=1, width=8, context_width=7, pooled_width=9)


@pytest.fixture
def tables(tmp_path: pathlib.Path) -> Context:
    """A context of pretrained features."""
    np.savez(tmp_path / "table.npz", table=TABLE)
    path = str(tmp_path / "table.npz")
    return Context("class_table", num_classes=3, width=8, class_tokens=2, class_width=5, class_embeddings=path)


def made(context: Context, y: Any) -> Any:
    return jax.jit(context.init)(jax.random.key(0), y)["params"]


def outcome(context: Context, params: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
    tokens, lengths, vector = jax.jit(lambda params, y: context.apply({"params": params}, y))(params, y)
    assert lengths is None
    return np.asarray(tokens), np.asarray(vector)


def test_class_tokens_are_rows_of_a_table_with_one_for_the_null_label() -> None:
    params = made(CLASSES, LABELS)
    assert params["class_tokens"].shape == (4, 2, 8)
    tokens, vector = outcome(CLASSES, params, LABELS)
    np.testing.assert_array_equal(tokens, params["class_tokens"][Y])
    assert vector.shape == (4, 8) and len(np.unique(vector[:, 0])) == 4


def test_the_vector_is_a_perceptron_of_the_mean_token(tables: Context) -> None:
    for context in (CLASSES, tables):
        params = made(context, LABELS)
        tokens, vector = outcome(context, params, LABELS)
        h = tokens.mean(1) @ params["pooled"]["hidden"]["kernel"] + params["pooled"]["hidden"]["bias"]
        h = h / (1 + np.exp(-h)) @ params["pooled"]["out"]["kernel"] + params["pooled"]["out"]["bias"]
        np.testing.assert_allclose(vector, h, atol=1e-5)


def test_a_table_is_read_from_its_file_when_parameters_are_made(tables: Context) -> None:
    for init in (tables.init, jax.jit(tables.init)):
        table = init(jax.random.key(0), LABELS)["params"]["frozen_table"]
        assert table.dtype == jnp.float32
        np.testing.assert_array_equal(table, TABLE.astype(np.float32))


def test_shapes_programs_and_outputs_need_no_file(tables: Context) -> None:
    params = made(tables, LABELS)
    elsewhere = tables.clone(class_embeddings="nowhere.npz")
    assert jax.eval_shape(elsewhere.init, jax.random.key(0), LABELS)["params"]["frozen_table"].shape == TABLE.shape
    np.testing.assert_array_equal(outcome(elsewhere, params, LABELS)[0], outcome(tables, params, LABELS)[0])


def test_tokens_of_a_table_are_projected_features_and_learned_positions(tables: Context) -> None:
    params = made(tables, LABELS)
    features = np.concatenate([TABLE, params["null_tokens"][None]])[Y]
    expected = features @ params["tokens"]["kernel"] + params["tokens"]["bias"] + params["token_positions"]
    np.testing.assert_allclose(outcome(tables, params, LABELS)[0], expected, atol=1e-6)


def test_nothing_trains_the_table_and_everything_else_learns(tables: Context) -> None:
    random, params = np.random.default_rng(2), made(tables, LABELS)
    params = jax.tree.map(lambda leaf: random.normal(size=leaf.shape).astype(np.float32), params)

    def loss(params: Any, y: Any) -> jax.Array:
        tokens, _, vector = tables.apply({"params": params}, y)
        return jnp.sum(jnp.square(tokens)) + jnp.sum(jnp.square(vector))

    gradient = jax.jit(jax.grad(loss))
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient(params, LABELS)):
        assert bool(np.any(np.asarray(leaf))) != ("frozen" in jax.tree_util.keystr(path)), path
    assert not np.any(np.asarray(gradient(params, {"label": np.asarray([0, 2], np.int32)})["null_tokens"]))


@pytest.mark.parametrize("kind", ["class_tokens", "class_table"])
def test_labels_are_left_as_they_were_and_each_has_its_own_tokens(kind: str, tables: Context) -> None:
    context, labels = tables.clone(kind=kind), Y.copy()
    params = context.init(jax.random.key(0), {"label": labels})["params"]
    tokens, _, _ = context.apply({"params": params}, {"label": labels})
    np.testing.assert_array_equal(labels, Y)
    assert len(np.unique(np.asarray(tokens)[:, 0, 0])) == 4


def test_texts_are_projected_or_taken_as_they_are() -> None:
    params = made(TEXTS, TEXT)
    expected = TEXT["tokens"] @ params["tokens"]["kernel"] + params["tokens"]["bias"]
    tokens, vector = outcome(TEXTS, params, TEXT)
    np.testing.assert_allclose(tokens, expected, atol=1e-5)
    assert vector.shape == (4, 8) and np.any(vector)

    wide = {"tokens": RANDOM.normal(size=(4, 6, 8)).astype(np.float32)}
    plain = TEXTS.clone(context_width=None, pooled_width=None)
    assert plain.init(jax.random.key(0), wide) == {}
    tokens, vector = outcome(plain, {}, wide)
    np.testing.assert_array_equal(tokens, wide["tokens"])
    assert vector == 0.0


@pytest.mark.parametrize("kind", ["class_tokens", "class_table", "text"])
def test_tokens_and_vector_have_the_compute_dtype(kind: str, tables: Context) -> None:
    context = {"text": TEXTS}.get(kind, tables.clone(kind=kind)).clone(dtype=jnp.bfloat16)
    (tokens, _, vector), variables = jax.eval_shape(
        context.init_with_output, jax.random.key(0), TEXT if kind == "text" else LABELS
    )
    assert [leaf.dtype for leaf in (tokens, vector)] == [jnp.bfloat16] * 2
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize(
    ("condition", "field"),
    [
        (LABELS, "condition"),
        ({"pooled": TEXT["pooled"]}, "condition"),
        ({"tokens": TEXT["tokens"]}, "condition"),
        (TEXT | {"tokens": TEXT["pooled"][:, None]}, "model.context_width"),
        (TEXT | {"pooled": TEXT["tokens"][:, 0]}, "model.pooled_width"),
    ],
)
def test_texts_that_are_missing_or_of_other_widths_are_an_error(condition: Any, field: str) -> None:
    with pytest.raises(UserError) as caught:
        jax.eval_shape(TEXTS.init, jax.random.key(0), condition)
    assert caught.value.field == field and "\n" not in str(caught.value)


def test_tokens_under_a_mask_come_first_in_their_order_and_zeros_follow() -> None:
    mask = RANDOM.uniform(size=(4, 6)) < [[0.5], [0.5], [1.0], [0.0]]
    params = made(TEXTS, TEXT)
    whole, _ = outcome(TEXTS, params, TEXT)
    tokens, lengths, _ = TEXTS.apply({"params": params}, TEXT | {"mask": mask})
    np.testing.assert_array_equal(lengths, mask.sum(1))
    for ours, theirs, some in zip(tokens, whole, mask, strict=True):
        np.testing.assert_allclose(ours[: some.sum()], theirs[some], atol=1e-6)
        assert not np.any(ours[some.sum() :])


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        (dict(class_tokens=0), "class_tokens"),
        (dict(kind="class_tokens", class_tokens=-1), "class_tokens"),
        (dict(class_width=0), "class_width"),
        (dict(num_classes=None), "num_classes"),
    ],
)
def test_fields_that_leave_no_tokens_are_named(fields: dict[str, Any], named: str, tables: Context) -> None:
    with pytest.raises(UserError) as caught:
        jax.eval_shape(tables.clone(**fields).init, jax.random.key(0), LABELS)
    assert caught.value.field == f"model.{named}"


def files(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Files that hold no table, by what they are."""
    paths = {name: folder / f"{name}.npz" for name in ("absent", "empty", "cut", "text", "other", "objects", "flat")}
    np.savez(paths["other"], features=TABLE)
    np.savez(paths["objects"], table=np.asarray([{}, None], object))
    np.savez(paths["flat"], table=TABLE[0])
    for name, value in {"nan": np.nan, "infinite": np.inf, "large": 1e300, "complex": 1j, "words": "a"}.items():
        paths[name] = folder / f"{name}.npz"
        np.savez(paths[name], table=np.full(TABLE.shape, value))
    paths["cut"].write_bytes(paths["other"].read_bytes()[:200])
    paths["empty"].write_bytes(b"")
    paths["text"].write_text("no table")
    np.save(folder / "array.npy", TABLE)
    return paths | {"array": folder / "array.npy", "folder": folder}


def test_files_without_a_table_are_named(tmp_path: pathlib.Path, tables: Context) -> None:
    np.testing.assert_array_equal(read_table(tables.class_embeddings), TABLE)
    for path in map(str, [*files(tmp_path).values(), ""]):
        with pytest.raises(UserError) as caught:
            read_table(path)
        assert (caught.value.field, caught.value.value) == ("model.class_embeddings", path)


def test_a_table_of_another_shape_is_named_before_anything_is_compiled(tables: Context) -> None:
    with pytest.raises(UserError) as caught:
        jax.eval_shape(tables.clone(num_classes=4).init, jax.random.key(0), LABELS)
    assert caught.value.field == "model.class_embeddings"
