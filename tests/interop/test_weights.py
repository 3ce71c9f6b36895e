"""Laws of published tensors: layouts are turned back bit for bit, and everything that does not fit is named at once."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archirf_jax.errors import UserError
from archirf_jax.interop import weights
from archirf_jax.interop.weights import Layout, to_params, to_state

LAYOUTS = {
    "same": (weights.SAME, (5,)),
    "linear": (weights.LINEAR, (4, 3)),
    "convolution": (weights.CONV, (5, 4, 3, 2)),
    "pointwise": (weights.POINTWISE, (4, 3, 1)),
    "patches of 1": (weights.patches(1), (5, 2, 1, 1)),
    "patches of 2": (weights.patches(2), (5, 4, 2, 2)),
    "patches of 3": (weights.patches(3), (4, 1, 3, 3)),
}
every_layout = pytest.mark.parametrize(("layout", "shape"), LAYOUTS.values(), ids=LAYOUTS)
PARAMS: dict[str, Any] = {
    "first": {"kernel": np.arange(6.0).reshape(2, 3), "bias": np.arange(3.0)},
    "second": {"kernel": -np.arange(12.0).reshape(3, 4)},
}
NAMES = {"first": "a.0", "second": "a.1"}


def rename(path: weights.Path) -> tuple[str, Layout]:
    layer, leaf = path
    return f"{NAMES[layer]}.{leaf}", weights.LINEAR if leaf == "kernel" else weights.SAME


def numbered(shape: tuple[int, ...]) -> np.ndarray:
    """An array whose numbers are all unlike."""
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


@every_layout
@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
def test_layouts_turn_back_bit_for_bit(layout: Layout, shape: tuple[int, ...], array: Any) -> None:
    theirs = array(numbered(shape))
    ours = layout.to_ours(theirs)
    back = layout.to_theirs(ours)
    assert ours.dtype == back.dtype == theirs.dtype
    np.testing.assert_array_equal(back, theirs)
    np.testing.assert_array_equal(layout.to_ours(back), ours)


def test_layouts_say_what_they_mean() -> None:
    """A published layer applied the published way is ours applied our way."""
    w, x = numbered((4, 3)), numbered((2, 3))
    np.testing.assert_array_equal(np.einsum("oi,bi->bo", w, x), x @ weights.LINEAR.to_ours(w))
    np.testing.assert_array_equal(np.einsum("oi,bi->bo", w, x), x @ weights.POINTWISE.to_ours(w[:, :, None]))

    kernel, image = numbered((5, 4, 2, 2)), numbered((1, 2, 2, 4))  # one patch of four channels
    expected = np.einsum("ochw,bhwc->bo", kernel, image)
    np.testing.assert_array_equal(image.reshape(1, -1) @ weights.patches(2).to_ours(kernel), expected)

    kernel, image = numbered((5, 2, 3, 3)), numbered((1, 6, 7, 2))
    ours = jax.lax.conv_general_dilated(
        image, weights.CONV.to_ours(kernel), (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    theirs = jax.lax.conv_general_dilated(image.transpose(0, 3, 1, 2), kernel, (1, 1), "SAME")
    np.testing.assert_array_equal(ours.transpose(0, 3, 1, 2), theirs)


def test_parameters_and_published_tensors_are_turned_into_each_other() -> None:
    state = to_state(PARAMS, rename)
    assert {name: value.shape for name, value in state.items()} == {
        "a.0.kernel": (3, 2),
        "a.0.bias": (3,),
        "a.1.kernel": (4, 3),
    }
    assert weights.published_shapes(PARAMS, rename) == {name: value.shape for name, value in state.items()}
    like = jax.eval_shape(lambda: PARAMS)
    assert weights.published_shapes(like, rename) == {name: value.shape for name, value in state.items()}
    back = to_params(state, like, rename)
    assert jax.tree.structure(back) == jax.tree.structure(PARAMS)
    jax.tree.map(np.testing.assert_array_equal, back, PARAMS)


def test_missing_needless_and_misshapen_tensors_are_all_named_in_one_line() -> None:
    state = dict(to_state(PARAMS, rename))
    del state["a.0.bias"]
    state |= {"a.1.kernel": np.zeros((3, 4)), "b.weight": np.zeros(1), "c.weight": np.zeros(1)}
    with pytest.raises(UserError) as error:
        to_params(state, PARAMS, rename)
    message = str(error.value)
    assert "1 missing: a.0.bias" in message and "2 without place in this network: b.weight, c.weight" in message
    assert "1 of another shape: a.1.kernel (3, 4) instead of (4, 3)" in message and "\n" not in message
    assert "a.0.kernel" not in message


def test_long_lists_are_cut_and_say_so() -> None:
    extra = {f"extra.{i}": np.zeros(1) for i in range(20)}
    with pytest.raises(UserError) as error:
        to_params(to_state(PARAMS, rename) | extra, PARAMS, rename)
    assert "extra.11" in str(error.value) and "extra.12" not in str(error.value)


def test_a_scalar_and_a_vector_of_one_are_two_shapes() -> None:
    with pytest.raises(UserError) as caught:
        weights.check({"gain": (1,)}, {"gain": ()})
    assert caught.value.field == "checkpoint"
    weights.check({"gain": ()}, {"gain": ()})


def test_parameters_that_nobody_published_are_named() -> None:
    for turn in (to_state, weights.published_shapes):
        with pytest.raises(UserError) as caught:
            turn({"third": {"bias": np.zeros(3)}}, rename)
        assert (caught.value.field, caught.value.value) == ("model", "third/bias")


def test_blocks_are_counted_by_the_numbers_in_their_names() -> None:
    names = ["blocks.0.a", "blocks.11.b", "blocks.2.c", "other.blocks.40.a", "blocks.x", "blocksy.50.a"]
    assert weights.count(names, r"blocks\.(\d+)\.") == 12
    assert weights.count([], r"blocks\.(\d+)\.") == weights.count(["a.0"], r"blocks\.(\d+)\.") == 0
    assert [weights.numbered(name, "block") for name in ("block_3", "block_12", "blocks_3", "block_", "a_block_1")] == [
        3,
        12,
        None,
        None,
        None,
    ]


def test_a_ratio_of_widths_gives_the_hidden_width_again() -> None:
    for width in (44, 52, 100, 384, 1000, 1152, 2432):
        for hidden in range(1, 5 * width, 3):
            assert int(width * weights.ratio(hidden, width)) == hidden
    assert weights.ratio(4608, 1152) == 4.0
    assert weights.ratio(0, 0) == 0.0  # an empty state dict reaches a message, not a division
