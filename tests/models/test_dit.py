"""Laws of the DiT: what adaLN-Zero promises at initialisation, symmetries, precision, and published sizes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archirf_jax.errors import UserError
from archirf_jax.models.dit import PRESETS, SIZES, DiT, DiTBlock

FIELDS: dict[str, Any] = dict(num_classes=3, patch_size=2, hidden_size=16, depth=2, num_heads=2)
MODEL = DiT(**FIELDS)
BLOCK = DiTBlock(num_heads=2)
RANDOM = np.random.default_rng(0)
B, H, W, C = 4, 4, 6, 3  # not square, so that a mix-up of rows and columns shows
X = RANDOM.normal(size=(B, H, W, C)).astype(np.float32)
T = np.asarray([0.0, 120.0, 500.0, 1000.0], np.float32)
Y = np.asarray([0, 2, 1, 3], np.int32)  # the last is the null label
TOKENS = RANDOM.normal(size=(2, 5, 16)).astype(np.float32)
CONDITION = RANDOM.normal(size=(2, 16)).astype(np.float32)


@jax.jit
def apply(params: Any, x: Any, t: Any, y: Any) -> Any:
    return MODEL.apply({"params": params}, x, t, y)


@jax.jit
def apply_block(params: Any, x: Any, c: Any) -> Any:
    return BLOCK.apply({"params": params}, x, c)


@jax.jit
def gradient(params: Any, y: Any) -> Any:
    return jax.grad(lambda params: jnp.sum(jnp.square(apply(params, X, T, y))))(params)


def shapes(model: DiT, x: Any) -> Any:
    """The parameters of `model` for images x as shapes and dtypes, without making them."""
    t = np.zeros(len(x), np.float32)
    return jax.eval_shape(model.init, jax.random.key(0), x, t, t.astype(np.int32))["params"]


def stir(params: Any) -> Any:
    """Parameters of the same shapes without zeros, so that no gate hides a branch."""
    random = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: random.normal(0, 0.2, leaf.shape).astype(np.float32), params)


@pytest.fixture(scope="module")
def fresh() -> Any:
    return jax.jit(MODEL.init)(jax.random.key(1), X, T, Y)["params"]


@pytest.fixture(scope="module")
def stirred() -> Any:
    return stir(shapes(MODEL, X))


def test_the_output_is_exactly_zero_at_initialisation(fresh: Any) -> None:
    np.testing.assert_array_equal(apply(fresh, X, T, Y), np.zeros((B, H, W, C)))


def test_a_fresh_block_is_the_identity_and_a_stirred_one_is_not(fresh: Any) -> None:
    for i in range(MODEL.depth):
        block = fresh[f"block_{i}"]
        np.testing.assert_array_equal(apply_block(block, TOKENS, CONDITION), TOKENS)
        assert np.max(np.abs(apply_block(stir(block), TOKENS, CONDITION) - TOKENS)) > 0.1


def test_a_block_knows_no_order_of_tokens(stirred: Any) -> None:
    order = np.asarray([3, 0, 4, 2, 1])
    out = np.asarray(apply_block(stirred["block_0"], TOKENS, CONDITION))
    np.testing.assert_allclose(apply_block(stirred["block_0"], TOKENS[:, order], CONDITION), out[:, order], atol=1e-5)


@pytest.mark.parametrize("learn_sigma", [False, True])
@pytest.mark.parametrize(("height", "width", "channels", "patch"), [(8, 8, 1, 2), (4, 8, 3, 4), (9, 3, 2, 3)])
def test_the_output_has_the_shape_of_the_image(
    learn_sigma: bool, height: int, width: int, channels: int, patch: int
) -> None:
    model = DiT(**FIELDS | dict(patch_size=patch, learn_sigma=learn_sigma))
    out, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), np.zeros((B, height, width, channels)), T, Y)
    assert out.shape == (B, height, width, channels * (2 if learn_sigma else 1))
    assert out.dtype == jnp.float32


def test_a_patch_comes_back_where_it_was() -> None:
    """Without blocks nothing mixes tokens: a pixel reaches the pixels of its own patch, and all of them."""
    model = DiT(**FIELDS | dict(depth=0))
    x = X[:1, ..., :1]
    variables = {"params": stir(shapes(model, x))}

    def picture(pixels: jax.Array) -> jax.Array:
        return jnp.ravel(jnp.asarray(model.apply(variables, pixels.reshape(1, H, W, 1), T[:1], Y[:1])))

    reached = np.asarray(jax.jit(jax.jacobian(picture))(x.reshape(-1))).reshape(H, W, H, W) != 0
    patch = np.arange(H)[:, None] // 2 * W + np.arange(W) // 2  # (H, W): the number of each pixel's patch
    np.testing.assert_array_equal(reached, patch[:, :, None, None] == patch)


def test_without_blocks_a_crop_of_the_image_gives_the_crop_of_the_output() -> None:
    """Positions count from the top left corner, rows and columns each by themselves, so a crop keeps them."""
    model = DiT(**FIELDS | dict(depth=0))
    x = np.concatenate([X[:1, ..., :1], X[1:2, :2, :, :1]], axis=1)  # (1, 6, 6, 1)
    variables = {"params": stir(shapes(model, x))}
    parts = (x, x[:, :4], x[:, :, :4])
    whole, low, narrow = (np.asarray(model.apply(variables, part, T[1:2], Y[:1])) for part in parts)
    np.testing.assert_allclose(low, whole[:, :4], atol=1e-5)
    np.testing.assert_allclose(narrow, whole[:, :, :4], atol=1e-5)


def test_the_examples_of_a_batch_do_not_see_each_other(stirred: Any) -> None:
    order = np.asarray([2, 0, 3, 1])
    out = apply(stirred, X, T, Y)
    np.testing.assert_allclose(apply(stirred, X[order], T[order], Y[order]), out[order], atol=1e-5)
    np.testing.assert_allclose(apply(stirred, np.concatenate([X[:1] + 1, X[1:]]), T, Y)[1:], out[1:], atol=1e-5)


@pytest.mark.parametrize("what", ["image", "time", "label"])
def test_the_output_depends_on_image_time_and_label(stirred: Any, what: str) -> None:
    changed = {"image": (X + 0.5, T, Y), "time": (X, T + 100.0, Y), "label": (X, T, (Y + 1) % 4)}[what]
    difference = np.abs(np.subtract(apply(stirred, *changed), apply(stirred, X, T, Y)))
    assert np.all(np.max(difference, axis=(1, 2, 3)) > 1e-2)


def test_tokens_know_where_they_are(stirred: Any) -> None:
    """Two equal patches in different places get different outputs."""
    out = np.asarray(apply(stirred, np.ones_like(X), T, Y))
    below, beside = out[:, 2:4, :2], out[:, :2, 2:4]
    assert np.max(np.abs(out[:, :2, :2] - below)) > 1e-2 and np.max(np.abs(out[:, :2, :2] - beside)) > 1e-2


def test_the_null_label_has_a_row_of_its_own(fresh: Any, stirred: Any) -> None:
    table = fresh["label_embedding"]["embedding"]
    assert table.shape == (MODEL.num_classes + 1, MODEL.hidden_size)

    labels = (Y, np.full_like(Y, MODEL.num_classes))
    every, null = (np.asarray(gradient(stirred, y)["label_embedding"]["embedding"]) for y in labels)
    assert np.all(every != 0)
    np.testing.assert_array_equal(null[:-1], np.zeros_like(null[:-1]))
    assert np.all(null[-1] != 0)


def test_every_parameter_gets_a_gradient(stirred: Any) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(jax.tree.map(np.asarray, gradient(stirred, Y))):
        assert np.all(np.isfinite(leaf)) and np.any(leaf != 0), jax.tree_util.keystr(path)


def test_bfloat16_keeps_parameters_and_output_in_float32_and_stays_close(stirred: Any) -> None:
    model = MODEL.clone(dtype=jnp.bfloat16)
    params = shapes(model, X)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
    assert params == shapes(MODEL, X)

    rough = np.asarray(jax.jit(lambda params: model.apply({"params": params}, X, T, Y))(stirred))
    exact = np.asarray(apply(stirred, X, T, Y))
    assert rough.dtype == jnp.float32
    error = np.linalg.norm(rough - exact) / np.linalg.norm(exact)
    assert 1e-5 < error < 3e-2  # 8 bits of mantissa, but not float32 in disguise


def test_bfloat16_leaves_norms_and_the_final_layer_in_float32(stirred: Any) -> None:
    model = MODEL.clone(dtype=jnp.bfloat16)
    _, state = jax.eval_shape(
        lambda params: model.apply({"params": params}, X, T, Y, capture_intermediates=True), stirred
    )
    outputs = [
        (jax.tree_util.keystr(path), leaf.dtype)
        for path, leaf in jax.tree_util.tree_leaves_with_path(state["intermediates"])
    ]
    precise = [dtype for path, dtype in outputs if "LayerNorm" in path or "final_layer" in path]
    rough = [dtype for path, dtype in outputs if "attention" in path or "mlp" in path]
    assert len(precise) >= 7 and set(precise) == {jnp.dtype(jnp.float32)}
    assert len(rough) >= 4 and set(rough) == {jnp.dtype(jnp.bfloat16)}


def parameters(width: int, depth: int, patch: int, channels: int, classes: int) -> int:
    """The weights and biases of a DiT that learns sigma, from Fig. 3 of the paper."""

    def linear(inputs: int, outputs: int) -> int:
        return (inputs + 1) * outputs

    embeddings = linear(patch**2 * channels, width) + linear(256, width) + linear(width, width) + (classes + 1) * width
    attention = linear(width, 3 * width) + linear(width, width)
    mlp = linear(width, 4 * width) + linear(4 * width, width)
    block = attention + mlp + linear(width, 6 * width)
    final = linear(width, 2 * width) + linear(width, 2 * patch**2 * channels)
    return embeddings + depth * block + final


@pytest.mark.parametrize(("size", "published"), [("S", 33), ("B", 130), ("L", 458), ("XL", 675)])
def test_the_presets_have_the_published_numbers_of_parameters(size: str, published: int) -> None:
    fields: dict[str, Any] = PRESETS[f"{size}/2"]
    model = DiT(num_classes=1000, learn_sigma=True, **fields)
    count = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes(model, np.zeros((1, 32, 32, 4)))))
    assert count == parameters(model.hidden_size, model.depth, patch=2, channels=4, classes=1000)
    assert round(count / 1e6) == published


def test_the_presets_are_buildable() -> None:
    assert len(PRESETS) == 3 * len(SIZES)
    for name in PRESETS:
        fields: dict[str, Any] = PRESETS[name]
        assert name.endswith(f"/{DiT(num_classes=1, **fields).patch_size}")


@pytest.mark.parametrize(
    ("fields", "shape", "named"),
    [
        (dict(patch_size=2), (5, 4), "model.patch_size: 2 .* 5x4"),
        (dict(patch_size=2), (4, 7), "model.patch_size: 2 .* 4x7"),
        (dict(patch_size=0), (4, 4), "model.patch_size: 0"),
        (dict(num_heads=3), (4, 4), "model.hidden_size: 16 .* num_heads=3"),
        (dict(num_heads=0), (4, 4), "model.num_heads: 0"),
        (dict(hidden_size=18, num_heads=2), (4, 4), "model.hidden_size: 18 .* 4"),
    ],
)
def test_sizes_that_do_not_divide_are_named(fields: dict[str, int], shape: tuple[int, int], named: str) -> None:
    with pytest.raises(UserError, match=named):
        shapes(DiT(**FIELDS | fields), np.zeros((1, *shape, 1)))
