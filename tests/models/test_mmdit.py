"""Laws of the MMDiT: two streams that meet, zero at initialisation, what each option changes, and published sizes."""

from __future__ import annotations

import functools
import pathlib
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
every_model = pytest.mark.parametrize("name", MODELS)


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


@every_model
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


@every_model
def test_every_trainable_parameter_gets_a_gradient_and_no_frozen_one(name: str) -> None:
    model = MODELS[name]
    gradients, _ = both(model)(stir(shapes(model)))
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        key = jax.tree_util.keystr(path)
        assert np.all(np.isfinite(leaf)) and bool(np.any(np.asarray(leaf))) != ("frozen_" in key), key


@every_model
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


def test_the_streams_have_weights_of_their_own_and_the_last_context_ends() -> None:
    """What would only change a context that nobody reads is not there."""
    whole, last = (shapes(TEXTS)[f"block_{i}"] for i in range(2))
    goes_on, ends = {"modulation", "project", "out", "perceptron"}, {"modulation", "project"}
    assert (set(whole["image"]), set(whole["context"])) == (goes_on, goes_on)
    assert (set(last["image"]), set(last["context"])) == (goes_on, ends)
    assert whole["context"]["modulation"]["kernel"].shape == (16, 96)
    assert last["context"]["modulation"]["kernel"].shape == (16, 32)

    params = shapes(TEXTS.clone(depth_single=1))
    assert set(params["block_1"]["context"]) == goes_on and set(params["block_2"]) == {"tokens"}
    assert set(params["block_2"]["tokens"]) == goes_on


@pytest.mark.parametrize("registers", [0, 2])
def test_blocks_of_one_stream_act_on_the_image(registers: int) -> None:
    model = LABELS.clone(registers=registers)
    params = stir(shapes(model))
    other = params | {"block_1": jax.tree.map(np.negative, params["block_1"])}
    assert differ(run(model, other), run(model, params))
    assert ("registers" in params) == (registers > 0)


def test_registers_matter_and_have_no_order() -> None:
    params = stir(shapes(LABELS))
    out = run(LABELS, params)
    assert out.shape == X.shape
    np.testing.assert_allclose(run(LABELS, params | {"registers": params["registers"][::-1]}), out, atol=1e-4)
    assert differ(run(LABELS, params | {"registers": params["registers"][:, ::-1]}), out)


def test_a_second_attention_sees_the_image_alone() -> None:
    """With the joint attention's outputs at zero, a block of two attentions hides the context from the image."""
    model = DUAL
    y = {"tokens": TEXT["tokens"]}
    params = stir(shapes(model, y=y))
    assert set(params["block_0"]["image"]) == {"modulation", "project", "out", "perceptron", "second"}
    assert "second" not in params["block_0"]["context"]
    assert params["block_0"]["image"]["modulation"]["kernel"].shape == (16, 9 * 16)
    out, other = run(model, params, y=y), run(model, params, y={"tokens": y["tokens"][..., ::-1]})
    assert differ(out, other)

    image = params["block_0"]["image"]
    alone = {"block_0": params["block_0"] | {"image": image | {"out": jax.tree.map(np.zeros_like, image["out"])}}}
    out, other = (run(model, params | alone, y={"tokens": tokens}) for tokens in (y["tokens"], y["tokens"][..., ::-1]))
    np.testing.assert_array_equal(out, other)
    mixed = run(model, params | alone, np.concatenate([X[:, :, :4], X[:, :, 4:] + 1], axis=2), y=y)
    assert differ(mixed[:, :, :4], out[:, :, :4])  # patches do attend to each other


def test_norms_of_root_mean_square_keep_the_mean_and_modulation_may_lack_shifts() -> None:
    """A stream shifted as a whole is the same to a layer norm, and another to the other."""
    for norm, same in (("layer", True), ("rms", False)):
        model = TEXTS.clone(depth=1, norm=norm)
        params = stir(shapes(model))
        embedding = params["patch_embedding"]
        moved = params | {"patch_embedding": embedding | {"bias": embedding["bias"] + 3}}
        assert np.allclose(run(model, moved), run(model, params), atol=1e-3) == same
    block = shapes(TEXTS.clone(scale_only=True))["block_1"]
    assert block["image"]["modulation"]["kernel"].shape == (16, 4 * 16)
    assert block["context"]["modulation"]["kernel"].shape == (16, 16)


@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_normed_queries_and_keys_do_not_know_how_large_they_were(kind: str) -> None:
    model = EVERYTHING.clone(qk_norm=kind)

    def larger(path: Any, leaf: np.ndarray) -> np.ndarray:
        wide = np.repeat(np.float32([10, 100, 1]), 16)
        return leaf * wide if "qkv" in jax.tree_util.keystr(path) else leaf

    params = stir(shapes(model))
    grown = run(model, jax.tree_util.tree_map_with_path(larger, params))
    np.testing.assert_allclose(grown, run(model, params), atol=5e-3)


def test_biases_of_projections_may_be_left_out() -> None:
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(shapes(EVERYTHING))]
    fewer = shapes(EVERYTHING.clone(use_bias=False))
    kept = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(fewer)]
    assert sorted(kept) == sorted(name for name in names if not name.endswith("['qkv']['bias']"))
    # Two streams of two blocks, one second attention, two blocks of one stream.
    assert len(kept) == len(names) - (4 + 1 + 2)


def stack(params: Any) -> Any:
    """EVERYTHING's parameters as those of one compiled block for each run of equal ones."""
    runs = {"blocks_0": (0,), "blocks_1": (1,), "blocks_2": (2, 3)}
    rest = {name: value for name, value in params.items() if not name.startswith("block_")}
    return rest | {
        name: jax.tree.map(lambda *leaves: np.stack(leaves), *(params[f"block_{i}"] for i in members))
        for name, members in runs.items()
    }


def test_blocks_computed_again_and_compiled_once_give_the_same_output_and_gradient() -> None:
    params = stir(shapes(EVERYTHING))
    slope, output = both(EVERYTHING)(params)
    other, given = EVERYTHING.clone(remat=True, scan=True), stack(params)
    assert shapes(other) == jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), given)
    for ours, theirs in zip(jax.tree.leaves(both(other)(given)), jax.tree.leaves((stack(slope), output)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4 * np.abs(theirs).max())


@pytest.mark.parametrize(("remat", "scan"), [(True, False), (False, True)])
def test_one_of_them_goes_without_the_other(remat: bool, scan: bool) -> None:
    params = shapes(LABELS.clone(scan=scan))
    jaxpr = str(jax.make_jaxpr(both(LABELS.clone(remat=remat, scan=scan)))(params))
    assert ("remat" in jaxpr) == remat and ("scan[" in jaxpr) == scan


@pytest.mark.parametrize(("fields", "channels"), [({}, 2), (dict(learn_sigma=True), 4), (dict(out_channels=5), 5)])
def test_the_output_has_the_shape_of_the_image(fields: dict[str, Any], channels: int) -> None:
    for height, width, patch in ((8, 8, 2), (4, 8, 4), (9, 3, 3)):
        model, x = LABELS.clone(patch_size=patch, **fields), np.zeros((B, height, width, C))
        out, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), x, T, {"label": Y})
        assert out.shape == (B, height, width, channels) and out.dtype == jnp.float32


def test_an_image_takes_the_middle_of_the_table() -> None:
    """Positions outside it mean nothing; the table starts as sines and cosines and is not trained."""
    model = EVERYTHING
    fresh = jax.jit(lambda: model.init(jax.random.key(0), X, T, TEXT)["params"]["frozen_positions"])()
    assert fresh.shape == (25, 16)
    np.testing.assert_allclose(fresh[0], np.repeat([0, 1, 0, 1], 4), atol=1e-7)
    params = stir(shapes(model))
    inside = np.zeros((5, 5, 1), bool)
    inside[1:3, 1:4] = True
    table = params["frozen_positions"].reshape(5, 5, 16)
    for where, matters in ((~inside, False), (inside, True)):
        moved = params | {"frozen_positions": np.where(where, -table, table).reshape(25, 16)}
        assert differ(run(model, moved), run(model, params)) == matters
    with pytest.raises(UserError) as caught:
        jax.jit(lambda x: model.init(jax.random.key(0), x, T, TEXT)).trace(np.zeros((B, 10, 12, C)))
    assert caught.value.field == "model.position_size"
    assert shapes(TEXTS, np.zeros((B, 40, 60, C))) == shapes(TEXTS)  # without table there is no end


def test_a_table_of_published_size_is_not_a_constant_of_the_program() -> None:
    model = TEXTS.clone(depth=1, position_size=96)
    text = jax.jit(model.init).lower(jax.random.key(0), X, T, TEXT).as_text()
    assert len(text) < 96 * 96 * 16


def test_classes_with_a_table_of_features_run_from_end_to_end(tmp_path: pathlib.Path) -> None:
    np.savez(tmp_path / "table.npz", table=RANDOM.normal(size=(3, 2, 5)))
    path = str(tmp_path / "table.npz")
    model = MMDiT(**SIZE | dict(depth=1), context="class_table", class_width=5, class_embeddings=path)
    frozen = {"context": jax.jit(model.conditions().init)(jax.random.key(0), {"label": Y})["params"]}
    params = stir(shapes(model)) | frozen
    assert shapes(model)["context"] == jax.eval_shape(lambda: frozen["context"])
    assert differ(run(model, params, y={"label": (Y + 1) % 4}), run(model, params))


@pytest.mark.parametrize("name", ["labels", "everything"])
def test_bfloat16_keeps_parameters_and_output_in_float32_and_stays_close(name: str) -> None:
    model = MODELS[name].clone(dtype=jnp.bfloat16)
    assert shapes(model) == shapes(MODELS[name])
    params = jax.tree.map(lambda leaf: leaf / 2, stir(shapes(model)))
    rough, exact = run(model, params), run(MODELS[name], params)
    assert rough.dtype == jnp.float32
    assert 1e-5 < np.linalg.norm(rough - exact) / np.linalg.norm(exact) < 5e-2


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
