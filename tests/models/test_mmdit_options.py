"""What each option of the MMDiT changes: streams, registers, second attentions, norms, compiled blocks, positions."""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archirf_jax.errors import UserError
from archirf_jax.models.mmdit import MMDiT
from tests.models.test_mmdit import (
    DUAL,
    EVERYTHING,
    LABELS,
    MODELS,
    RANDOM,
    SIZE,
    TEXT,
    TEXTS,
    B,
    C,
    T,
    X,
    Y,
    both,
    differ,
    run,
    shapes,
    stir,
)


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
    assert ("policy=None" in jaxpr) == remat and ("scan[" in jaxpr) == scan


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
