"""Laws of EDM2's U-Net: silence at initialisation, magnitudes, weights of one length, labels, and precision."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archirf_jax.errors import UserError
from archirf_jax.models.edm2_unet import PRESETS, Block, EDM2UNet

FIELDS: dict[str, Any] = dict(
    num_classes=3, model_channels=8, channel_mult=(1, 2), num_blocks=1, attention_levels=(1,), channels_per_head=8
)
MODEL = EDM2UNet(**FIELDS)
RANDOM = np.random.default_rng(0)
B, H, W, C = 4, 4, 6, 3  # not square, so that a mix-up of rows and columns shows
X = RANDOM.normal(size=(B, H, W, C)).astype(np.float32)
T = np.asarray([-1.2, -0.3, 0.1, 0.9], np.float32)
Y = np.asarray([0, 2, 1, 3], np.int32)  # the last is the null label
LABELS = {"label": Y}


@jax.jit
def apply(params: Any, x: Any, t: Any, y: Any) -> Any:
    return MODEL.apply({"params": params}, x, t, {"label": y})


@jax.jit
def gradient(params: Any, y: Any) -> Any:
    """Of the summed square of the output, activations computed again."""
    again = MODEL.clone(remat=True)
    return jax.grad(lambda params: jnp.sum(jnp.square(again.apply({"params": params}, X, T, {"label": y}))))(params)


normalize = jax.jit(MODEL.normalize_weights)


def shapes(model: EDM2UNet, x: Any) -> Any:
    """The parameters of `model` for images x as shapes and dtypes, without making them."""
    t = np.zeros(len(x), np.float32)
    return jax.eval_shape(model.init, jax.random.key(0), x, t, {"label": t.astype(np.int32)})["params"]


def of_type(tree: Any, *names: str) -> dict[str, Any]:
    """The leaves whose own names start with one of these, by path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves if path[-1].key.startswith(names)}


def normal(model: EDM2UNet, x: Any, gain: float) -> Any:
    """Parameters distributed as at initialisation, but for their gains."""
    random = np.random.default_rng(1)

    def drawn(path: Any, leaf: Any) -> np.ndarray:
        name = path[-1].key
        scale = 2 * np.pi if name.startswith("frozen_") else 1
        value = np.full(leaf.shape, gain) if name.endswith("gain") else scale * random.normal(size=leaf.shape)
        return value.astype(np.float32)

    return jax.tree_util.tree_map_with_path(drawn, shapes(model, x))


@pytest.fixture(scope="module")
def params() -> Any:
    return normal(MODEL, X, 0.7)


def test_the_output_is_exactly_zero_at_initialisation_and_not_for_want_of_weights(params: Any) -> None:
    """Gains start at zero, and then whatever the weights are means nothing."""
    fresh = jax.jit(
        lambda: of_type(MODEL.init(jax.random.key(1), X, T, LABELS)["params"], "out_gain", "embedding_gain")
    )
    assert len(fresh()) == 11 and set(map(float, fresh().values())) == {0.0}
    silent = normal(MODEL, X, 0.0)
    for tree in (silent, normalize(silent)):
        np.testing.assert_array_equal(apply(tree, X, T, Y), np.zeros((B, H, W, C)))
    assert np.std(apply(params, X, T, Y)) > 0.1


def test_every_block_gives_numbers_of_mean_square_about_1() -> None:
    model = EDM2UNet(**FIELDS | dict(model_channels=32, channels_per_head=16))
    x = RANDOM.normal(size=(4, 16, 16, 3)).astype(np.float32)

    def of_blocks(module: Any, method: str) -> bool:
        return isinstance(module, Block) and method == "__call__"

    run = jax.jit(lambda params: model.apply({"params": params}, x, T, LABELS, capture_intermediates=of_blocks))
    out, state = run(normal(model, x, 0.0) | {"out_gain": np.ones((), np.float32)})
    squares = np.asarray([np.mean(np.square(leaf)) for leaf in jax.tree.leaves((out, state["intermediates"]))])
    assert len(squares) == 11 and np.all((0.6 < squares) & (squares < 1.6)), squares


def test_lengths_of_weights_mean_nothing(params: Any) -> None:
    def longer(path: Any, leaf: Any) -> Any:
        # Every weight and every output of it by another factor.
        factors = 1 + 9 * np.random.default_rng(len(jax.tree_util.keystr(path))).uniform(size=leaf.shape[-1:])
        return leaf * factors.astype(np.float32) if path[-1].key == "kernel" else leaf

    stretched = jax.tree_util.tree_map_with_path(longer, params)
    expected = np.asarray(apply(params, X, T, Y))
    np.testing.assert_allclose(apply(stretched, X, T, Y), expected, atol=2e-3 * np.max(np.abs(expected)))


def test_normalized_parameters_have_unit_weights_and_make_the_same_function(params: Any) -> None:
    stretched = jax.tree.map(lambda leaf: 3 * leaf if leaf.ndim > 1 else leaf, params)
    unit = normalize(stretched)
    assert jax.tree.map(jnp.shape, unit) == jax.tree.map(jnp.shape, params)
    for name, kernel in of_type(unit, "kernel").items():
        axes = tuple(range(kernel.ndim - 1))
        np.testing.assert_allclose(np.mean(kernel**2, axis=axes), 1, rtol=2e-3, err_msg=name)
    others = ("out_gain", "embedding_gain", "frozen_")
    for name, leaf in of_type(stretched, *others).items():
        np.testing.assert_array_equal(of_type(unit, *others)[name], leaf)
    for before, after in zip(*map(jax.tree.leaves, (unit, normalize(unit))), strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-3, atol=1e-6)
    expected = np.asarray(apply(params, X, T, Y))
    np.testing.assert_allclose(apply(unit, X, T, Y), expected, atol=2e-3 * np.max(np.abs(expected)))


def test_gradients_reach_every_trainable_parameter_and_no_frozen_one(params: Any) -> None:
    slopes = jax.tree.map(np.asarray, gradient(params, Y))
    frozen = of_type(slopes, "frozen_")
    assert set(frozen) == {f"['time_features']['frozen_{name}']" for name in ("frequencies", "phases")}
    assert not any(np.any(leaf) for leaf in frozen.values())
    for name, leaf in of_type(slopes, "kernel", "out_gain", "embedding_gain").items():
        assert np.all(np.isfinite(leaf)) and np.any(leaf != 0), name
    assert len(frozen) + len(of_type(slopes, "kernel", "out_gain", "embedding_gain")) == len(jax.tree.leaves(slopes))


def test_gradients_are_perpendicular_to_weights(params: Any) -> None:
    for name, slope in of_type(gradient(params, Y), "kernel").items():
        kernel = of_type(params, "kernel")[name]
        flat = [leaf.reshape(-1, leaf.shape[-1]) for leaf in (slope, kernel)]
        lengths = np.linalg.norm(flat[0], axis=0) * np.linalg.norm(flat[1], axis=0)
        assert np.all(np.abs(np.sum(flat[0] * flat[1], axis=0)) < 3e-3 * lengths + 1e-4), name


@pytest.mark.parametrize("what", ["image", "time", "label"])
def test_the_output_depends_on_image_time_and_label(params: Any, what: str) -> None:
    changed = {"image": (X[::-1], T, Y), "time": (X, T + 0.2, Y), "label": (X, T, (Y + 1) % 4)}[what]
    difference = np.abs(np.subtract(apply(params, *changed), apply(params, X, T, Y)))
    assert np.all(np.max(difference, axis=(1, 2, 3)) > 1e-2)


def test_the_null_label_adds_nothing_and_has_no_row(params: Any) -> None:
    kernel = of_type(params, "kernel")["['label_embedding']['kernel']"]
    assert kernel.shape == (MODEL.num_classes, 16)
    every, null = (gradient(params, y)["label_embedding"]["kernel"] for y in (Y, np.full_like(Y, 3)))
    assert np.all(np.any(every != 0, axis=1)) and not np.any(null)


def test_without_conditions_labels_are_ignored_and_have_no_layer(params: Any) -> None:
    model = MODEL.clone(class_conditional=False, num_classes=None)
    rest = {name: value for name, value in params.items() if name != "label_embedding"}
    assert jax.tree.map(jnp.shape, rest) == jax.tree.map(lambda leaf: leaf.shape, shapes(model, X))
    assert program(model, rest, LABELS) == program(model, rest, {})


def test_network_times_count_in_units_of_the_scale(params: Any) -> None:
    scaled = jax.jit(MODEL.clone(time_scale=1000.0).apply)({"params": params}, X, 1000 * T, LABELS)
    np.testing.assert_allclose(scaled, apply(params, X, T, Y), atol=1e-4)


def test_the_examples_of_a_batch_do_not_see_each_other(params: Any) -> None:
    order, out = np.asarray([2, 0, 3, 1]), apply(params, X, T, Y)
    np.testing.assert_allclose(apply(params, X[order], T[order], Y[order]), out[order], atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "shape"),
    [
        (dict(channel_mult=(1,), attention_levels=()), (5, 3, 1)),
        (dict(channel_mult=(2, 1, 3), num_blocks=2, attention_levels=(0, 2)), (4, 8, 2)),
        (dict(num_blocks=0, channel_mult_noise=3, channel_mult_emb=5), (2, 6, 4)),
        (dict(channel_mult=(1, 1, 1, 2), resample_filter=(1, 3, 3, 1), middle_attention=False), (8, 16, 3)),
    ],
)
def test_the_output_has_the_shape_of_the_image(fields: dict[str, Any], shape: tuple[int, ...]) -> None:
    model = EDM2UNet(**FIELDS | fields)
    out, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), np.zeros((B, *shape)), T, LABELS)
    assert out.shape == (B, *shape) and out.dtype == jnp.float32


def test_the_levels_that_are_named_attend_and_so_does_the_middle() -> None:
    def attending(**fields: Any) -> set[str]:
        tree = shapes(EDM2UNet(**FIELDS | fields), X)
        return {name for name, block in tree.items() if isinstance(block, dict) and "qkv" in block}

    assert attending() == {"enc_1_block0", "dec_1_in0", "dec_1_block0", "dec_1_block1"}
    assert attending(attention_levels=(0,), middle_attention=False) == {"enc_0_block0", "dec_0_block0", "dec_0_block1"}
    assert attending(attention_levels=()) == {"dec_1_in0"}


def test_a_decoder_block_whose_branches_count_nothing_is_the_identity_but_for_clipping() -> None:
    block = Block(8, heads=2, res_balance=0.0, attn_balance=0.0, clip_act=None)
    x, emb = 300 * RANDOM.normal(size=(2, 4, 4, 8)).astype(np.float32), np.ones((2, 5), np.float32)
    variables = jax.jit(block.init)(jax.random.key(0), x, emb)
    clipping = block.clone(clip_act=256.0)
    same, clipped = jax.jit(lambda *given: (block.apply(*given), clipping.apply(*given)))(variables, x, emb)
    np.testing.assert_allclose(same, x, rtol=1e-6)
    np.testing.assert_allclose(clipped, np.clip(x, -256, 256), rtol=1e-6)


def test_attention_knows_no_order_of_pixels_and_convolution_does() -> None:
    block = Block(8, heads=2, res_balance=0.0, attn_balance=0.6)
    x, emb = RANDOM.normal(size=(1, 2, 4, 8)).astype(np.float32), np.ones((1, 5), np.float32)
    variables = jax.jit(block.init)(jax.random.key(0), x, emb)
    run = jax.jit(block.apply)
    out = np.asarray(run(variables, x, emb))
    turned = run(variables, x[:, ::-1, ::-1], emb)
    np.testing.assert_allclose(turned, out[:, ::-1, ::-1], atol=1e-5)
    assert np.max(np.abs(out - x)) > 0.1
    local = jax.jit(block.clone(res_balance=0.5).apply)
    difference = np.asarray(local(variables, x[:, ::-1, ::-1], emb)) - local(variables, x, emb)[:, ::-1, ::-1]
    assert np.max(np.abs(difference)) > 0.1


def program(model: EDM2UNet, params: Any, condition: Any) -> str:
    """What the network computes, as text."""
    return str(jax.make_jaxpr(lambda params: model.apply({"params": params}, X, T, condition))(params))


def test_dropout_acts_where_an_rng_is_given(params: Any) -> None:
    model = MODEL.clone(dropout=0.5)
    run = jax.jit(lambda key: model.apply({"params": params}, X, T, LABELS, rngs={"dropout": key}))
    assert program(model, params, LABELS) == program(MODEL, params, LABELS)
    outs = [np.asarray(run(jax.random.key(i))) for i in (0, 0, 1)]
    np.testing.assert_array_equal(outs[0], outs[1])
    assert min(np.max(np.abs(outs[0] - other)) for other in (outs[2], apply(params, X, T, Y))) > 0.1


def test_recomputed_activations_change_no_gradient_and_no_parameter(params: Any) -> None:
    """The gradient is the slope, by finite differences, of the network that computes nothing again."""
    assert jax.tree.structure(shapes(MODEL.clone(remat=True), X)) == jax.tree.structure(params)
    slopes, step = gradient(params, Y), 1e-3
    for seed in range(3):
        random = np.random.default_rng(seed)
        # Where the gradient is zero, as it is by constants, the way does not lead.
        way = jax.tree.map(lambda leaf, random=random: random.normal(size=leaf.shape) * np.any(leaf), slopes)
        ends = [jax.tree.map(lambda a, b, s=s: np.float32(a + s * b), params, way) for s in (step, -step)]
        above, below = (np.sum(np.square(apply(end, X, T, Y), dtype=np.float64)) for end in ends)
        slope = sum(map(np.vdot, *map(jax.tree.leaves, (slopes, way))))
        assert (above - below) / (2 * step) == pytest.approx(slope, rel=1e-2)


def test_bfloat16_keeps_parameters_embeddings_and_output_in_float32_and_stays_close(params: Any) -> None:
    model = MODEL.clone(dtype=jnp.bfloat16)
    assert shapes(model, X) == shapes(MODEL, X)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes(model, X))} == {jnp.dtype(jnp.float32)}
    run = jax.jit(lambda params: model.apply({"params": params}, X, T, LABELS, capture_intermediates=True))
    rough, state = run(params)
    exact = np.asarray(apply(params, X, T, Y))
    assert rough.dtype == jnp.float32
    assert 1e-4 < np.linalg.norm(rough - exact) / np.linalg.norm(exact) < 5e-2  # 8 bits of mantissa
    kinds = {jax.tree_util.keystr(p): v.dtype for p, v in jax.tree_util.tree_leaves_with_path(state["intermediates"])}
    precise = {
        dtype for path, dtype in kinds.items() if "embedding" in path or "features" in path or "out_conv" in path
    }
    rest = {dtype for path, dtype in kinds.items() if "conv_0" in path or "qkv" in path or "enc_0_conv" in path}
    assert precise == {jnp.dtype(jnp.float32)} and rest == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize("side", [8, 32])
def test_the_tiny_preset_fits_small_images(side: int) -> None:
    tree = shapes(EDM2UNet(num_classes=10, **PRESETS["tiny"]), np.zeros((1, side, side, 1)))
    assert sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree)) < 1e6


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        (dict(channel_mult=(1, 1, 1)), "model.channel_mult"),
        (dict(channel_mult=()), "model.channel_mult"),
        (dict(channel_mult=(1, 0)), "model.channel_mult"),
        (dict(channels_per_head=32), "model.channels_per_head"),
        (dict(channels_per_head=5), "model.channels_per_head"),
        (dict(channels_per_head=0), "model.channels_per_head"),
        (dict(attention_levels=(0, 2)), "model.attention_levels"),
        (dict(attention_levels=(-1,)), "model.attention_levels"),
        (dict(resample_filter=(1, 2, 1)), "model.resample_filter"),
        (dict(resample_filter=(1, -1)), "model.resample_filter"),
        (dict(model_channels=0), "model.model_channels"),
        (dict(num_classes=None), "model.num_classes"),
        (dict(num_classes=0), "model.num_classes"),
        (dict(num_blocks=-1), "model.num_blocks"),
        (dict(clip_act=-1.0), "model.clip_act"),
        (dict(time_scale=0.0), "model.time_scale"),
        (dict(res_balance=1.5), "model.res_balance"),
        (dict(dropout=1.0), "model.dropout"),
    ],
)
def test_what_does_not_fit_is_named(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError) as caught:
        shapes(EDM2UNet(**FIELDS | fields), X)
    assert caught.value.field == named
