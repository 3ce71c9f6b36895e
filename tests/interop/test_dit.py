"""Laws of importing published DiT weights: names and layouts of the reference, fields from shapes, and the way back."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from archirf_jax.errors import UserError
from archirf_jax.interop import dit
from archirf_jax.interop.weights import published_shapes, to_params, to_state
from archirf_jax.models.dit import PRESETS, DiT

SMALL: dict[str, Any] = dict(num_classes=3, patch_size=2, hidden_size=8, depth=2, num_heads=2, learn_sigma=True)
VARIANTS: list[dict[str, Any]] = [
    {},
    {"patch_size": 3, "num_classes": 1, "depth": 1},
    {"hidden_size": 12, "num_heads": 3, "depth": 11},  # two digits in a block's number
    {"mlp_ratio": 2.5, "learn_sigma": False, "depth": 1},
    {"mlp_ratio": 120 / 44 + 1e-9, "hidden_size": 44, "num_heads": 1},  # 44 (120 / 44) is below 120
    {"null_label": False, "patch_size": 1},
]
every_variant = pytest.mark.parametrize("changes", VARIANTS)
CHANNELS = 4


def shapes_of(model: DiT, channels: int = CHANNELS) -> Any:
    side, t, y = 2 * model.patch_size, np.zeros(1, np.float32), {"label": np.zeros(1, np.int32)}
    x = np.zeros((1, side, side, channels), np.float32)
    return jax.eval_shape(model.init, jax.random.key(0), x, t, y)["params"]


def filled(model: DiT) -> Any:
    """Parameters of normal numbers."""
    random = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: random.normal(size=leaf.shape).astype(np.float32), shapes_of(model))


def published(model: DiT, channels: int = CHANNELS) -> dict[str, tuple[int, ...]]:
    """The reference's `state_dict`, written down from it: linear layers out x in."""
    d, p = model.hidden_size, model.patch_size
    shapes: dict[str, tuple[int, ...]] = {
        "x_embedder.proj.weight": (d, channels, p, p),
        "x_embedder.proj.bias": (d,),
        "y_embedder.embedding_table.weight": (model.num_classes + model.null_label, d),
    }

    def linear(name: str, inputs: int, outputs: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (outputs, inputs), (outputs,)

    linear("t_embedder.mlp.0", 256, d)
    linear("t_embedder.mlp.2", d, d)
    for i in range(model.depth):
        linear(f"blocks.{i}.attn.qkv", d, 3 * d)
        linear(f"blocks.{i}.attn.proj", d, d)
        linear(f"blocks.{i}.mlp.fc1", d, int(model.mlp_ratio * d))
        linear(f"blocks.{i}.mlp.fc2", int(model.mlp_ratio * d), d)
        linear(f"blocks.{i}.adaLN_modulation.1", d, 6 * d)
    linear("final_layer.adaLN_modulation.1", d, 2 * d)
    linear("final_layer.linear", d, p * p * channels * (2 if model.learn_sigma else 1))
    return shapes


def shapes_in(state: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: np.shape(value) for name, value in state.items()}


@every_variant
def test_names_and_shapes_are_those_of_the_reference(changes: dict[str, Any]) -> None:
    model = DiT(**SMALL | changes)
    assert published_shapes(shapes_of(model), dit.rename(model)) == published(model)


@every_variant
def test_shapes_tell_the_network_and_tensors_come_back_bit_for_bit(changes: dict[str, Any]) -> None:
    model = DiT(**SMALL | changes)
    params = filled(model)
    state = to_state(params, dit.rename(model))
    hints = {"num_heads": model.num_heads} | ({} if model.null_label else {"num_classes": model.num_classes})
    found = DiT(**dit.fields(shapes_in(state), hints))
    assert int(found.hidden_size * found.mlp_ratio) == int(model.hidden_size * model.mlp_ratio)
    assert found == model.clone(mlp_ratio=found.mlp_ratio)
    assert found.mlp_ratio == pytest.approx(model.mlp_ratio, abs=1 / model.hidden_size)

    back = to_params(state, shapes_of(found), dit.rename(found))
    assert jax.tree.structure(back) == jax.tree.structure(params)
    assert jax.tree.all(jax.tree.map(np.array_equal, back, params))


def test_linear_layers_are_transposed_and_patches_unrolled_in_the_order_of_the_network() -> None:
    model = DiT(**SMALL)
    params = filled(model)
    state = to_state(params, dit.rename(model))
    np.testing.assert_array_equal(state["blocks.1.mlp.fc1.weight"], params["block_1"]["mlp"]["hidden"]["kernel"].T)
    kernel = state["x_embedder.proj.weight"]
    for row, column, channel in np.ndindex(2, 2, CHANNELS):
        ours = params["patch_embedding"]["kernel"][(row * 2 + column) * CHANNELS + channel]
        np.testing.assert_array_equal(kernel[:, channel, row, column], ours)


@pytest.mark.parametrize("name", [name for name in PRESETS if not name.startswith("tiny")])
def test_published_networks_need_no_hint(name: str) -> None:
    """DiT-S/2 to DiT-XL/8 for 1000 classes, from shapes alone."""
    model = DiT(num_classes=1000, learn_sigma=True, **PRESETS[name])
    assert DiT(**dit.fields(published(model), {})) == model


def test_others_need_the_number_of_heads_and_say_so() -> None:
    for shapes in (published(DiT(**SMALL)), {}):
        with pytest.raises(UserError) as caught:
            dit.fields(shapes, {})
        assert caught.value.field == "model.num_heads"
    assert dit.fields(published(DiT(**SMALL)), {"num_heads": 4})["num_heads"] == 4


def test_a_hint_wins_over_the_published_number_of_heads() -> None:
    model = DiT(num_classes=1000, **PRESETS["S/2"])
    assert dit.fields(published(model), {"num_heads": 12})["num_heads"] == 12


def test_the_last_label_is_the_null_label_unless_the_hint_counts_it_as_a_class() -> None:
    shapes = published(DiT(**SMALL | dict(num_classes=9)))  # ten rows
    fields = [dit.fields(shapes, {"num_heads": 2} | hint) for hint in ({}, {"num_classes": 10}, {"num_classes": 9})]
    assert [(found["num_classes"], found["null_label"]) for found in fields] == [(9, True), (10, False), (9, True)]


def test_every_missing_tensor_is_named() -> None:
    model = DiT(**SMALL)
    like, rename = shapes_of(model), dit.rename(model)
    state = to_state(filled(model), rename)
    for name in list(state)[:: len(state) // 8]:
        rest = {other: state[other] for other in state if other != name}
        with pytest.raises(UserError) as caught:
            to_params(rest, like, rename)
        assert caught.value.field == "checkpoint" and str(caught.value).endswith(f"1 missing: {name}")


@pytest.mark.parametrize(
    ("changes", "field", "value"),
    [
        (dict(conditioning="adaln"), "model.conditioning", "adaln"),
        (dict(conditioning="in_context"), "model.conditioning", "in_context"),
        (dict(positions="rotary"), "model.positions", "rotary"),
        (dict(registers=2), "model", "registers"),
        (dict(mlp="swiglu"), "model", "block_0/mlp/gate/kernel"),
        (dict(qk_norm="rms"), "model", "block_0/attention/project/"),
        (dict(scan=True), "model", "blocks_0/"),
    ],
)
def test_what_the_reference_lacks_is_not_given_its_names(changes: dict[str, Any], field: str, value: str) -> None:
    model = DiT(**SMALL | changes)
    with pytest.raises(UserError) as caught:
        to_state(filled(model), dit.rename(model))
    assert caught.value.field == field and caught.value.value.startswith(value)


@pytest.mark.parametrize(("size", "patch", "side"), [(8, 2, 4), (32, 4, 8), (9, 3, 3)])
def test_the_stored_table_of_positions_is_the_one_that_the_network_adds(size: int, patch: int, side: int) -> None:
    """The formula of the reference, in float64: columns in the first half of the channels, rows in the second."""
    model = DiT(**SMALL | dict(patch_size=patch))
    (name, table), *others = dit.constants(model, size).items()
    assert name == "pos_embed" and not others and table.shape == (1, side * side, 8)
    assert isinstance(table, np.ndarray) and table.dtype == np.float32
    frequencies = np.asarray([1, 1e-2])
    for row, column in np.ndindex(side, side):
        angles = np.outer([column, row], frequencies)
        expected = np.stack([np.sin(angles), np.cos(angles)], axis=1).ravel()
        np.testing.assert_allclose(table[0, row * side + column], expected, atol=1e-6)
