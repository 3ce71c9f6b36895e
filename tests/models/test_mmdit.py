"""Laws of the MMDiT: two streams that meet, zero at initialisation, what each option changes, and published sizes."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archirf_jax.errors import UserError
from archirf_jax.models.mmdit import PRESETS, MMDiT

RANDOM = np.random.default_rng(0)
B, H, W, C, L = 3, 4, 6, 2, 5
X = RANDOM.normal(size=(B, H, W, C)).astype(np.float32)
T = np.asarray([0.0, 120.0, 900.0], np.float32)
Y = np.asarray([0, 2, 3], np.int32)  # the last is the null label
TEXT = {
    "tokens": RANDOM.normal(size=(B, L, 7)).astype(np.float32),
    "pooled": RANDOM.normal(size=(B, 9)).astype(np.float32),
}
SIZE: dict[str, Any] = dict(num_classes=3, hidden_size=16, depth=2, num_heads=2)
TEXTS = MMDiT(**SIZE, context="text", context_width=7, pooled_width=9)
LABELS = MMDiT(**SIZE | dict(depth=1), depth_single=1, registers=2)
DUAL = TEXTS.clone(depth=1, dual_layers=(0,), pooled_width=None)
EVERYTHING = TEXTS.clone(depth_single=2, dual_layers=(0,), registers=1, qk_norm="rms", position_size=5)
MODELS = {"texts": TEXTS, "labels": LABELS, "everything": EVERYTHING}
each_kind = pytest.mark.parametrize("name", ["labels", "everything"])  # which has all of "texts", too


def condition(model: MMDiT) -> Any:
    return TEXT if model.context == "text" else {"label": Y}


def shapes(model: MMDiT, x: Any = X, y: Any = None) -> Any:
    """The parameters of `model` as shapes and dtypes, without making them."""
    y = condition(model) if y is None else y
    return jax.eval_shape(model.init, jax.random.key(0), x, np.zeros(len(x), np.float32), y)["params"]


def stir(params: Any) -> Any:
    """Parameters of the same shapes without zeros, so that no gate hides a branch."""
    random = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: random.normal(0, 0.3, leaf.shape).astype(np.float32), params)


@functools.cache
def network(model: MMDiT) -> Any:
    """(params, x, t, y) -> output, compiled."""
    return jax.jit(lambda params, x, t, y: model.apply({"params": params}, x, t, y))


@functools.cache
def both(model: MMDiT) -> Any:
    """params -> (gradients of the summed square of the output, output), compiled."""

    def loss(params: Any) -> tuple[jax.Array, jax.Array]:
        out = jnp.asarray(model.apply({"params": params}, X, T, condition(model)))
        return jnp.sum(jnp.square(out)), out

    return jax.jit(jax.grad(loss, has_aux=True))


def run(model: MMDiT, params: Any, x: Any = X, t: Any = T, y: Any = None) -> np.ndarray:
    return np.asarray(network(model)(params, x, t, condition(model) if y is None else y))


def without(params: Any, part: str) -> Any:
    """The same with zeros where a path contains `part`."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: leaf * (part not in jax.tree_util.keystr(path)), params)


def differ(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether every example differs."""
    return bool(np.all(np.abs(a - b).max((1, 2, 3)) > 1e-3))


def test_the_output_is_exactly_zero_at_initialisation_and_fresh_blocks_are_the_identity() -> None:
    """All gates are zero: even with a final layer that is not, the blocks' other weights mean nothing."""
    start = stir(shapes(LABELS))
    for name in ("block_0", "block_1"):
        start[name] = without(start[name], "modulation")
    params = start | {"final_layer": jax.tree.map(np.zeros_like, start["final_layer"])}
    np.testing.assert_array_equal(run(LABELS, params), np.zeros((B, H, W, C)))
    other = start | {
        name: without(jax.tree.map(np.negative, start[name]), "modulation") for name in ("block_0", "block_1")
    }
    np.testing.assert_array_equal(run(LABELS, other), run(LABELS, start))
    assert np.any(run(LABELS, start))


@each_kind
def test_what_keeps_the_output_at_zero_starts_at_zero(name: str) -> None:
    model = MODELS[name]
    fresh = jax.jit(
        lambda: {
            jax.tree_util.keystr(path): leaf
            for path, leaf in jax.tree_util.tree_leaves_with_path(model.init(jax.random.key(0), X, T, condition(model)))
            if "modulation" in jax.tree_util.keystr(path) or "final_layer" in jax.tree_util.keystr(path)
        }
    )()
    assert len(fresh) >= 10 and not any(np.any(leaf) for leaf in fresh.values())


@each_kind
def test_every_trainable_parameter_gets_a_gradient_and_no_frozen_one(name: str) -> None:
    model = MODELS[name]
    gradients, _ = both(model)(stir(shapes(model)))
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        key = jax.tree_util.keystr(path)
        assert np.all(np.isfinite(leaf)) and bool(np.any(np.asarray(leaf))) != ("frozen_" in key), key


@each_kind
@pytest.mark.parametrize("what", ["image", "time", "tokens", "pooled"])
def test_the_output_depends_on_image_time_and_condition(name: str, what: str) -> None:
    model = MODELS[name]
    params, y = stir(shapes(model)), condition(model)
    if model.context == "text":
        other = y | {what: y.get(what, X)[..., ::-1]}
        changed = {"image": (X + 0.5, T, y), "time": (X, T + 50.0, y)}.get(what, (X, T, other))
    else:
        changed = {"image": (X + 0.5, T, y), "time": (X, T + 50.0, y)}.get(what, (X, T, {"label": (Y + 1) % 4}))
    assert differ(run(model, params, *changed), run(model, params))


def test_the_context_has_no_order_and_the_image_has() -> None:
    moved = TEXT | {"tokens": TEXT["tokens"][:, [3, 0, 4, 2, 1]]}
    for model in (TEXTS, EVERYTHING):
        params = stir(shapes(model))
        out = run(model, params)
        np.testing.assert_allclose(run(model, params, y=moved), out, atol=1e-4)
        assert not np.allclose(run(model, params, X[:, :, ::-1]), out[:, :, ::-1], atol=1e-2)


def test_the_examples_of_a_batch_do_not_see_each_other() -> None:
    order, params = np.asarray([2, 0, 1]), stir(shapes(TEXTS))
    moved = jax.tree.map(lambda leaf: leaf[order], TEXT)
    np.testing.assert_allclose(run(TEXTS, params, X[order], T[order], moved), run(TEXTS, params)[order], atol=1e-4)


def test_texts_of_any_length_and_none_at_all_run_with_the_same_parameters() -> None:
    for length in (0, 3):
        y = {"tokens": np.zeros((B, length, 7), np.float32), "pooled": TEXT["pooled"]}
        assert shapes(TEXTS, y=y) == shapes(TEXTS)
        assert np.all(np.isfinite(run(TEXTS, stir(shapes(TEXTS)), y=y)))


MASK = np.asarray([[False, True, True, False, True], [True, True, False, True, False], [False] * 5])


@pytest.mark.parametrize(("name", "scan"), [("texts", False), ("everything", True)])
def test_tokens_that_are_masked_out_are_as_if_they_were_not_there(name: str, scan: bool) -> None:
    """Wherever they stand and whatever they hold, down to a text without any token."""
    model = MODELS[name].clone(scan=scan, remat=scan)
    params = stir(shapes(model))
    out = run(model, params, y=TEXT | {"mask": MASK})
    three = np.stack(
        [tokens[some] if some.any() else tokens[:3] for tokens, some in zip(TEXT["tokens"], MASK, strict=True)]
    )
    for tokens, rows in ((three, [0, 1]), (three[:, :0], [2])):
        np.testing.assert_allclose(out[rows], run(model, params, y=TEXT | {"tokens": tokens})[rows], atol=1e-4)
    other = TEXT | {"mask": MASK, "tokens": np.where(MASK[..., None], TEXT["tokens"], 1e3)}
    np.testing.assert_array_equal(run(model, params, y=other), out)
    assert differ(out, run(model, params))


def test_keys_that_are_not_read_change_nothing() -> None:
    alone = {"tokens": TEXT["tokens"]}
    params = stir(shapes(DUAL, y=alone))
    np.testing.assert_array_equal(run(DUAL, params, y=TEXT | {"label": Y, "features": X}), run(DUAL, params, y=alone))


def trainable(params: Any) -> int:
    return sum(
        int(np.prod(leaf.shape))
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        if "frozen_" not in jax.tree_util.keystr(path)
    )


def parameters(width: int, depth: int, dual: int, norms: bool) -> int:
    """The weights and biases of Stable Diffusion 3, from Fig. 2 of the paper: heads of 64, patches of 2x2x16."""

    def linear(inputs: int, outputs: int) -> int:
        return (inputs + 1) * outputs

    project = linear(width, 3 * width) + (2 * 64 if norms else 0)
    attention = project + linear(width, width)
    perceptron = linear(width, 4 * width) + linear(4 * width, width)
    stream = linear(width, 6 * width) + attention + perceptron
    ends = linear(width, 2 * width) + project
    second = attention + linear(width, 3 * width)
    outside = linear(64, width) + linear(4096, width) + linear(width, 2 * width) + linear(width, 64)
    vectors = linear(256, width) + linear(2048, width) + 2 * linear(width, width)
    return outside + vectors + (2 * depth - 1) * stream + ends + dual * second


@pytest.mark.parametrize(
    ("name", "dual", "published"),
    [
        ("sd3-medium", 0, 2_028_328_000),
        ("sd3.5-medium", 13, 2_243_171_520),
        ("sd3.5-large", 0, 8_056_627_520),
    ],
)
def test_the_presets_have_the_published_numbers_of_parameters(name: str, dual: int, published: int) -> None:
    model = MMDiT(num_classes=1, **PRESETS[name])
    y = {"tokens": np.zeros((1, 1, 4096), np.float32), "pooled": np.zeros((1, 2048), np.float32)}
    params = shapes(model.clone(scan=True), np.zeros((1, 8, 8, 16), np.float32), y)  # equal blocks traced once
    assert params["frozen_positions"].shape == (model.position_size**2, model.hidden_size)
    assert trainable(params) == parameters(model.hidden_size, model.depth, dual, norms=model.qk_norm is not None)
    assert trainable(params) == published


def test_presets_of_this_project_are_buildable() -> None:
    for name in ("tiny/2", "S/2"):
        assert shapes(MMDiT(num_classes=3, **PRESETS[name]))["final_layer"]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        (dict(patch_size=3), "patch_size"),
        (dict(num_heads=3), "num_heads"),
        (dict(hidden_size=18), "hidden_size"),
        (dict(hidden_size=0), "hidden_size"),
        (dict(depth=0), "depth"),
        (dict(mlp_ratio=0.0), "mlp_ratio"),
        (dict(mlp_ratio=0.05), "mlp_ratio"),
        (dict(depth_single=-1), "depth_single"),
        (dict(registers=-3), "registers"),
        (dict(position_size=-1), "position_size"),
        (dict(out_channels=-1), "out_channels"),
        (dict(dual_layers=(0, 2)), "dual_layers"),
        (dict(dual_layers=(-1,)), "dual_layers"),
        (dict(dual_layers=(0,), scale_only=True), "dual_layers"),
        (dict(context="class_token"), "context"),
        (dict(norm="layers"), "norm"),
        (dict(mlp="gleu"), "mlp"),
        (dict(qk_norm="rmsnorm"), "qk_norm"),
    ],
)
def test_what_does_not_fit_is_named_in_one_line(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError) as caught:
        shapes(LABELS.clone(**fields))
    assert caught.value.field == f"model.{named}" and "\n" not in str(caught.value)


def test_texts_that_do_not_fit_are_refused() -> None:
    for y, field in (
        ({"label": Y}, "condition"),
        (TEXT | {"tokens": X[:, 0]}, "model.context_width"),
        ({"tokens": TEXT["tokens"]}, "condition"),
        (TEXT | {"pooled": X[:, 0, 0]}, "model.pooled_width"),
    ):
        with pytest.raises(UserError) as caught:
            shapes(TEXTS, y=y)
        assert caught.value.field == field
