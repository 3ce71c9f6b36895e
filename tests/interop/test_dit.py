"""Laws of importing published DiT weights: every tensor lands once, in a tree that the network accepts."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from archirf_jax.interop.dit import params_from_state_dict
from archirf_jax.models.dit import DiT

SMALL: dict[str, Any] = dict(num_classes=3, patch_size=2, hidden_size=8, depth=2, num_heads=2, learn_sigma=True)
VARIANTS: list[dict[str, Any]] = [
    {},
    {"patch_size": 3, "num_classes": 1, "depth": 0},
    {"hidden_size": 12, "num_heads": 3, "depth": 11},  # two digits in a block's number
    {"mlp_ratio": 2.5, "learn_sigma": False, "depth": 1},
]


def published(model: DiT, channels: int, null_row: bool = True) -> dict[str, np.ndarray]:
    """A `state_dict` of the published layout (linear layers out x in), every number in it unlike the others."""
    d, p = model.hidden_size, model.patch_size
    shapes: dict[str, tuple[int, ...]] = {
        "x_embedder.proj.weight": (d, channels, p, p),
        "x_embedder.proj.bias": (d,),
        "y_embedder.embedding_table.weight": (model.num_classes + null_row, d),
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

    state, start = {}, 1
    for name, shape in shapes.items():
        size = int(np.prod(shape))
        state[name] = np.arange(start, start + size, dtype=np.float32).reshape(shape)
        start += size
    assert start < 2**24  # the numbers are exact in float32
    return state


def values(tree: Any) -> np.ndarray:
    return np.sort(np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]))


@pytest.mark.parametrize("fields", VARIANTS)
def test_imported_parameters_have_the_tree_and_shapes_of_the_network(fields: dict[str, Any]) -> None:
    model = DiT(**SMALL | fields)
    size, t, y = model.patch_size * 2, np.zeros(1, np.float32), np.zeros(1, np.int32)
    expected = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, size, size, 4), np.float32), t, y)["params"]
    params = params_from_state_dict(published(model, channels=4), model.num_classes)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), params) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), expected
    )


def test_every_number_of_the_state_arrives_exactly_once() -> None:
    model = DiT(**SMALL)
    state = published(model, channels=4)
    np.testing.assert_array_equal(values(params_from_state_dict(state, model.num_classes)), values(state))


def test_linear_layers_are_transposed_and_patches_unrolled_in_the_order_of_the_network() -> None:
    model = DiT(**SMALL)
    state = published(model, channels=4)
    params = params_from_state_dict(state, model.num_classes)
    np.testing.assert_array_equal(params["block_1"]["mlp"]["hidden"]["kernel"], state["blocks.1.mlp.fc1.weight"].T)
    kernel = state["x_embedder.proj.weight"]
    for row in range(2):
        for column in range(2):
            for channel in range(4):
                ours = params["patch_embedding"]["kernel"][(row * 2 + column) * 4 + channel]
                np.testing.assert_array_equal(ours, kernel[:, channel, row, column])


def test_a_missing_tensor_is_an_error_that_names_it() -> None:
    state = published(DiT(**SMALL), channels=4)
    for name in state:
        with pytest.raises(KeyError, match=name):
            params_from_state_dict({other: state[other] for other in state if other != name}, num_classes=3)
    with pytest.raises(KeyError):
        params_from_state_dict({}, num_classes=3)


def test_a_stored_position_table_is_ignored() -> None:
    state = published(DiT(**SMALL), channels=4)
    plain = params_from_state_dict(state, num_classes=3)
    stored = params_from_state_dict(state | {"pos_embed": np.ones((1, 4, 8), np.float32)}, num_classes=3)
    assert jax.tree.all(jax.tree.map(np.array_equal, plain, stored))


def test_a_model_without_null_row_gets_a_null_label_of_zeros() -> None:
    model = DiT(**SMALL)
    state = published(model, channels=4, null_row=False)
    table = params_from_state_dict(state, model.num_classes)["label_embedding"]["embedding"]
    assert table.shape == (4, 8) and table.dtype == np.float32
    np.testing.assert_array_equal(table[:-1], state["y_embedder.embedding_table.weight"])
    np.testing.assert_array_equal(table[-1], np.zeros(8))
