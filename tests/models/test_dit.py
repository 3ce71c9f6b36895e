"""Laws of the DiT's four designs: zero at initialisation, symmetries, gradients, precision, and published sizes."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archirf_jax.errors import UserError
from archirf_jax.models.dit import MODULATIONS, PRESETS, SIZES, DiT, DiTBlock

FIELDS: dict[str, Any] = dict(num_classes=3, patch_size=2, hidden_size=16, depth=2, num_heads=2)
MODEL = DiT(**FIELDS)
BLOCK = DiTBlock(num_heads=2)
RANDOM = np.random.default_rng(0)
B, H, W, C = 4, 4, 6, 3  # not square, so that a mix-up of rows and columns shows
X = RANDOM.normal(size=(B, H, W, C)).astype(np.float32)
T = np.asarray([0.0, 120.0, 500.0, 1000.0], np.float32)
Y = np.asarray([0, 2, 1, 3], np.int32)  # the last is the null label
LABELS = {"label": Y}
TOKENS = RANDOM.normal(size=(2, 5, 16)).astype(np.float32)
CONDITION = RANDOM.normal(size=(2, 16)).astype(np.float32)
every_design = pytest.mark.parametrize("design", MODULATIONS)


@functools.cache
def network(design: str, dtype: Any = jnp.float32) -> Any:
    """The compiled network of one design: (params, x, t, y) -> output."""
    model = MODEL.clone(conditioning=design, dtype=dtype)
    return jax.jit(lambda params, x, t, y: model.apply({"params": params}, x, t, {"label": y}))


@functools.cache
def stirred(design: str) -> Any:
    return stir(shapes(MODEL.clone(conditioning=design), X))


@functools.cache
def gradients(design: str) -> Any:
    """(params, y) -> gradients of the summed square of the output."""
    apply = network(design)
    return jax.jit(jax.grad(lambda params, y: jnp.sum(jnp.square(apply(params, X, T, y)))))


@jax.jit
def apply_block(params: Any, x: Any, c: Any) -> Any:
    return BLOCK.apply({"params": params}, x, c)


def shapes(model: DiT, x: Any) -> Any:
    """The parameters of `model` for images x as shapes and dtypes, without making them."""
    t = np.zeros(len(x), np.float32)
    return jax.eval_shape(model.init, jax.random.key(0), x, t, {"label": t.astype(np.int32)})["params"]


def stir(params: Any) -> Any:
    """Parameters of the same shapes without zeros, so that no gate hides a branch."""
    random = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: random.normal(0, 0.2, leaf.shape).astype(np.float32), params)


def starts_at_zero(path: Any) -> bool:
    """Biases, modulations and the final layer."""
    name = jax.tree_util.keystr(path)
    return any(part in name for part in ("bias", "modulation", "final_layer']['linear"))


def silent(params: Any) -> Any:
    """The same with zeros where training finds zeros."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: leaf * (not starts_at_zero(path)), params)


@every_design
def test_the_output_is_exactly_zero_at_initialisation(design: str) -> None:
    np.testing.assert_array_equal(network(design)(silent(stirred(design)), X, T, Y), np.zeros((B, H, W, C)))


@every_design
def test_only_what_the_paper_says_starts_at_zero(design: str) -> None:
    model = MODEL.clone(conditioning=design, depth=1)
    fresh = jax.jit(lambda: jax.tree.map(jnp.any, model.init(jax.random.key(1), X, T, LABELS)["params"]))()
    for path, leaf in jax.tree_util.tree_leaves_with_path(fresh):
        assert bool(leaf) != starts_at_zero(path), jax.tree_util.keystr(path)


def test_a_fresh_block_is_the_identity_and_a_stirred_one_is_not() -> None:
    block = stirred("adaln_zero")["block_0"]
    np.testing.assert_array_equal(apply_block(silent(block), TOKENS, CONDITION), TOKENS)
    assert np.max(np.abs(apply_block(block, TOKENS, CONDITION) - TOKENS)) > 0.1


def test_a_block_knows_no_order_of_tokens() -> None:
    order, block = np.asarray([3, 0, 4, 2, 1]), stirred("adaln_zero")["block_0"]
    out = np.asarray(apply_block(block, TOKENS, CONDITION))
    np.testing.assert_allclose(apply_block(block, TOKENS[:, order], CONDITION), out[:, order], atol=1e-5)


@every_design
@pytest.mark.parametrize(
    ("height", "width", "channels", "patch", "learn_sigma"),
    [(8, 8, 1, 2, False), (4, 8, 3, 4, True), (9, 3, 2, 3, True)],
)
def test_the_output_has_the_shape_of_the_image(
    design: str, height: int, width: int, channels: int, patch: int, learn_sigma: bool
) -> None:
    model = DiT(**FIELDS | dict(patch_size=patch, learn_sigma=learn_sigma, conditioning=design))
    out, _ = jax.eval_shape(
        model.init_with_output, jax.random.key(0), np.zeros((B, height, width, channels)), T, LABELS
    )
    assert out.shape == (B, height, width, channels * (2 if learn_sigma else 1))
    assert out.dtype == jnp.float32


def test_a_patch_comes_back_where_it_was() -> None:
    """Without blocks nothing mixes tokens: a pixel reaches the pixels of its own patch, and all of them."""
    model = DiT(**FIELDS | dict(depth=0))
    x = X[:1, ..., :1]
    variables = {"params": stir(shapes(model, x))}

    def image(pixels: jax.Array) -> jax.Array:
        return jnp.ravel(jnp.asarray(model.apply(variables, pixels.reshape(1, H, W, 1), T[:1], {"label": Y[:1]})))

    reached = np.asarray(jax.jit(jax.jacobian(image))(x.reshape(-1))).reshape(H, W, H, W) != 0
    patch = np.arange(H)[:, None] // 2 * W + np.arange(W) // 2  # (H, W): the number of each pixel's patch
    np.testing.assert_array_equal(reached, patch[:, :, None, None] == patch)


def test_without_blocks_a_crop_of_the_image_gives_the_crop_of_the_output() -> None:
    """Positions count from the top left corner, rows and columns each by themselves, so a crop keeps them."""
    model = DiT(**FIELDS | dict(depth=0))
    x = np.concatenate([X[:1, ..., :1], X[1:2, :2, :, :1]], axis=1)  # (1, 6, 6, 1)
    apply, variables = jax.jit(model.apply), {"params": stir(shapes(model, x))}
    parts = (x, x[:, :4], x[:, :, :4])
    whole, low, narrow = (np.asarray(apply(variables, part, T[1:2], {"label": Y[:1]})) for part in parts)
    np.testing.assert_allclose(low, whole[:, :4], atol=1e-5)
    np.testing.assert_allclose(narrow, whole[:, :, :4], atol=1e-5)


@every_design
def test_the_examples_of_a_batch_do_not_see_each_other(design: str) -> None:
    order, params, apply = np.asarray([2, 0, 3, 1]), stirred(design), network(design)
    out = apply(params, X, T, Y)
    np.testing.assert_allclose(apply(params, X[order], T[order], Y[order]), out[order], atol=1e-5)
    np.testing.assert_allclose(apply(params, np.concatenate([X[:1] + 1, X[1:]]), T, Y)[1:], out[1:], atol=1e-5)


@every_design
@pytest.mark.parametrize("what", ["image", "time", "label"])
def test_the_output_depends_on_image_time_and_label(design: str, what: str) -> None:
    changed = {"image": (X + 0.5, T, Y), "time": (X, T + 100.0, Y), "label": (X, T, (Y + 1) % 4)}[what]
    difference = np.abs(
        np.subtract(network(design)(stirred(design), *changed), network(design)(stirred(design), X, T, Y))
    )
    assert np.all(np.max(difference, axis=(1, 2, 3)) > 1e-3)


def test_time_and_label_are_added_or_stand_apart() -> None:
    """Where they are added, a label's embedding may move into the time's bias; where they are two tokens it may not."""
    for design, vectors in MODULATIONS.items():
        params, move = stirred(design), CONDITION[0]
        table = params["label_embedding"]["embedding"]
        bias = params["time_embedding"]["out"]["bias"]
        moved = params | {
            "label_embedding": {"embedding": table - move},
            "time_embedding": params["time_embedding"]
            | {"out": params["time_embedding"]["out"] | {"bias": bias + move}},
        }
        apply = network(design)
        same = np.allclose(apply(moved, X, T, Y), apply(params, X, T, Y), atol=1e-4)
        assert same == (vectors > 0), design


def test_the_null_label_has_a_row_of_its_own() -> None:
    table = stirred("adaln_zero")["label_embedding"]["embedding"]
    assert table.shape == (MODEL.num_classes + 1, MODEL.hidden_size)
    assert shapes(MODEL.clone(null_label=False), X)["label_embedding"]["embedding"].shape == (3, 16)

    labels = (Y, np.full_like(Y, MODEL.num_classes))
    tables = (gradients("adaln_zero")(stirred("adaln_zero"), y)["label_embedding"]["embedding"] for y in labels)
    every, null = (np.asarray(table) for table in tables)
    assert np.all(every != 0)
    np.testing.assert_array_equal(null[:-1], np.zeros_like(null[:-1]))
    assert np.all(null[-1] != 0)


@every_design
def test_every_parameter_gets_a_gradient(design: str) -> None:
    found = jax.tree.map(np.asarray, gradients(design)(stirred(design), Y))
    for path, leaf in jax.tree_util.tree_leaves_with_path(found):
        assert np.all(np.isfinite(leaf)) and np.any(leaf != 0), jax.tree_util.keystr(path)


@every_design
def test_bfloat16_keeps_parameters_and_output_in_float32_and_stays_close(design: str) -> None:
    params = shapes(MODEL.clone(conditioning=design, dtype=jnp.bfloat16), X)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
    assert params == shapes(MODEL.clone(conditioning=design), X)

    rough = np.asarray(network(design, jnp.bfloat16)(stirred(design), X, T, Y))
    exact = np.asarray(network(design)(stirred(design), X, T, Y))
    assert rough.dtype == jnp.float32
    error = np.linalg.norm(rough - exact) / np.linalg.norm(exact)
    assert 1e-5 < error < 3e-2  # 8 bits of mantissa, but not float32 in disguise


@every_design
def test_bfloat16_leaves_the_norms_and_the_final_layer_in_float32(design: str) -> None:
    model = MODEL.clone(dtype=jnp.bfloat16, conditioning=design, qk_norm="layer")
    _, state = jax.eval_shape(
        functools.partial(model.apply, capture_intermediates=True), {"params": shapes(model, X)}, X, T, LABELS
    )
    outputs = [
        (jax.tree_util.keystr(path), leaf.dtype)
        for path, leaf in jax.tree_util.tree_leaves_with_path(state["intermediates"])
    ]
    precise = [dtype for path, dtype in outputs if "_norm" in path or "final_layer" in path]
    rough = [dtype for path, dtype in outputs if "attention']['out" in path or "mlp']['__call__" in path]
    assert len(precise) >= 7 and set(precise) == {jnp.dtype(jnp.float32)}
    assert len(rough) >= 4 and set(rough) == {jnp.dtype(jnp.bfloat16)}


def parameters(design: str, width: int, depth: int, patch: int, channels: int, classes: int) -> int:
    """The weights and biases of a DiT that learns sigma, from Fig. 3 of the paper."""

    def linear(inputs: int, outputs: int) -> int:
        return (inputs + 1) * outputs

    embeddings = linear(patch**2 * channels, width) + linear(256, width) + linear(width, width) + (classes + 1) * width
    attention, norm = 4 * linear(width, width), 2 * width
    mlp = linear(width, 4 * width) + linear(4 * width, width)
    last = linear(width, 2 * patch**2 * channels)
    block, before = {
        "adaln_zero": (attention + mlp + linear(width, 6 * width), linear(width, 2 * width)),
        "adaln": (attention + mlp + linear(width, 4 * width), linear(width, 2 * width)),
        "cross_attention": (2 * attention + mlp + 3 * norm, norm),
        "in_context": (attention + mlp + 2 * norm, norm),
    }[design]
    return embeddings + depth * block + before + last


@pytest.mark.parametrize(
    ("design", "size", "published"),
    [
        ("adaln_zero", "S", 33),
        ("adaln_zero", "B", 130),
        ("adaln_zero", "L", 458),
        # Peebles & Xie 2022, Table 4.
        ("adaln_zero", "XL", 675),
        ("adaln", "XL", 600),
        ("cross_attention", "XL", 598),
        ("in_context", "XL", 449),
    ],
)
def test_the_presets_have_the_published_numbers_of_parameters(design: str, size: str, published: int) -> None:
    # With scan, equal blocks are traced once.
    model = DiT(num_classes=1000, learn_sigma=True, conditioning=design, scan=True, **PRESETS[f"{size}/2"])
    count = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes(model, np.zeros((1, 32, 32, 4)))))
    assert count == parameters(design, model.hidden_size, model.depth, patch=2, channels=4, classes=1000)
    assert abs(count / 1e6 - published) < 1


def test_the_presets_are_buildable() -> None:
    assert len(PRESETS) == 3 * len(SIZES)
    for name, fields in PRESETS.items():
        assert name.endswith(f"/{DiT(num_classes=1, **fields).patch_size}")


@pytest.mark.parametrize(
    ("fields", "shape", "named"),
    [
        (dict(patch_size=2), (5, 4), "model.patch_size"),
        (dict(patch_size=2), (4, 7), "model.patch_size"),
        (dict(patch_size=0), (4, 4), "model.patch_size"),
        (dict(num_heads=3), (4, 4), "model.num_heads"),
        (dict(num_heads=0), (4, 4), "model.num_heads"),
        (dict(hidden_size=18), (4, 4), "model.hidden_size"),
        (dict(hidden_size=0), (4, 4), "model.hidden_size"),
        (dict(mlp_ratio=-1.0), (4, 4), "model.mlp_ratio"),
        (dict(mlp_ratio=0.01), (4, 4), "model.mlp_ratio"),
        (dict(depth=-1), (4, 4), "model.depth"),
        (dict(registers=-1), (4, 4), "model.registers"),
        (dict(position_size=-2), (4, 4), "model.position_size"),
        (dict(conditioning="adaln_zeros"), (4, 4), "model.conditioning"),
        (dict(positions="rotatory"), (4, 4), "model.positions"),
        (dict(mlp="swi_glu"), (4, 4), "model.mlp"),
        (dict(qk_norm="rsm"), (4, 4), "model.qk_norm"),
        (dict(positions="rotary", hidden_size=12), (4, 4), "model.positions"),
        (dict(positions="learned"), (4, 4), "model.position_size"),
        (dict(num_classes=0), (4, 4), "model.num_classes"),
        (dict(context_width=0, conditioning="cross_attention"), (4, 4), "model.context_width"),
        (dict(context_width=5), (4, 4), "model.context_width"),
    ],
)
def test_what_does_not_fit_is_named_in_one_line(fields: dict[str, Any], shape: tuple[int, int], named: str) -> None:
    with pytest.raises(UserError) as caught:
        shapes(DiT(**FIELDS | fields), np.zeros((1, *shape, 1)))
    assert caught.value.field == named and "\n" not in str(caught.value)
