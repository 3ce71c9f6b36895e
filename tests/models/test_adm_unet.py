"""Laws of ADM's U-Net: silence at initialisation, labels and their absence, symmetries, and precision."""

from __future__ import annotations

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archirf_jax.errors import UserError
from archirf_jax.models.adm_unet import PRESETS, ADMUNet
from archirf_jax.models.layers import resized

# Widths 64 and 96: with 32 channels a norm has one channel a group, which hides what is added before it.
FIELDS: dict[str, Any] = dict(
    num_classes=3, model_channels=32, num_res_blocks=1, channel_mult=(2, 3), attention_downsamples=(2,), num_heads=2
)
MODEL = ADMUNet(**FIELDS)
PLAIN = MODEL.clone(
    scale_shift_norm=False, resblock_updown=False, attention_downsamples=(1,), attention_order="new", learn_sigma=True
)
AGAIN = MODEL.clone(remat=True)
RANDOM = np.random.default_rng(0)
B, H, W, C = 4, 4, 6, 3  # not square, so that a mix-up of rows and columns shows
X = RANDOM.normal(size=(B, H, W, C)).astype(np.float32)
SMALL = RANDOM.normal(size=(B, 2, 3, C)).astype(np.float32)
T = np.asarray([0.0, 120.0, 500.0, 999.0], np.float32)
Y = np.asarray([0, 2, 1, 3], np.int32)  # the last is the null label
LABELS = {"label": Y}
NULL = np.full_like(Y, 3)


@functools.partial(jax.jit, static_argnums=0)
def apply(model: ADMUNet, params: Any, x: Any, t: Any, y: Any, rngs: Any = None) -> Any:
    return model.apply({"params": params}, x, t, y if isinstance(y, dict) else {"label": y}, rngs=rngs)


@functools.partial(jax.jit, static_argnums=0)
def gradient(model: ADMUNet, params: Any, y: Any) -> Any:
    """Of the summed square of the output."""
    return jax.grad(lambda params: jnp.sum(jnp.square(model.apply({"params": params}, X, T, {"label": y}))))(params)


def program(model: ADMUNet, y: Any = LABELS, **rest: Any) -> str:
    """What the network computes on parameters of MODEL, as text."""
    return str(jax.make_jaxpr(lambda params: model.apply({"params": params}, X, T, y, **rest))(stirred(MODEL)))


def shapes(model: ADMUNet, x: Any = X, y: Any = None) -> Any:
    """The parameters of `model` for images x as shapes and dtypes, without making them."""
    t = np.zeros(len(x), np.float32)
    return jax.eval_shape(model.init, jax.random.key(0), x, t, {"label": t.astype(np.int32)} if y is None else y)[
        "params"
    ]


@functools.cache
def stirred(model: ADMUNet) -> Any:
    """Parameters without zeros, so that every branch counts."""
    random = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: random.normal(0, 0.1, leaf.shape).astype(np.float32), shapes(model))


def paths(tree: Any) -> list[str]:
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree.leaves_with_path(tree)]


def error(ours: Any, theirs: Any) -> float:
    return float(np.linalg.norm(np.subtract(ours, theirs)) / np.linalg.norm(theirs))


@pytest.mark.parametrize("model", [MODEL, PLAIN])
def test_the_output_is_exactly_zero_at_initialisation(model: ADMUNet) -> None:
    """The last convolution starts at zero, and then whatever is before it means nothing."""
    last = jax.jit(lambda: model.init(jax.random.key(1), X, T, LABELS)["params"]["output"])()
    out = apply(model, stirred(model) | {"output": last}, X, T, Y)
    np.testing.assert_array_equal(out, np.zeros((B, H, W, C * (1 + model.learn_sigma))))


@pytest.mark.parametrize(
    ("fields", "channels"),
    [({}, C), (dict(learn_sigma=True), 2 * C), (dict(out_channels=5), 5), (dict(out_channels=5, learn_sigma=True), 5)],
)
def test_the_output_has_the_shape_of_the_image(fields: dict[str, Any], channels: int) -> None:
    out, _ = jax.eval_shape(MODEL.clone(**fields).init_with_output, jax.random.key(0), X, T, LABELS)
    assert out.shape == (B, H, W, channels) and out.dtype == jnp.float32


@pytest.mark.slow
@pytest.mark.parametrize("model", [AGAIN, PLAIN])
def test_every_parameter_gets_a_gradient(model: ADMUNet) -> None:
    found = gradient(model, stirred(model), Y)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(found))
    for path, leaf in jax.tree.leaves_with_path(found):
        assert 1e-6 * largest < np.abs(leaf).max() < np.inf, jax.tree_util.keystr(path)


def test_the_label_table_has_a_row_a_class_and_the_null_label_touches_none() -> None:
    assert stirred(MODEL)["label_embedding"]["embedding"].shape == (3, 4 * MODEL.model_channels)
    every, null = (gradient(AGAIN, stirred(AGAIN), y)["label_embedding"]["embedding"] for y in (Y, NULL))
    assert np.all(np.any(every != 0, axis=1))
    np.testing.assert_array_equal(null, np.zeros_like(null))


def test_the_null_label_is_the_network_without_labels() -> None:
    params = dict(stirred(MODEL))
    with_null = apply(MODEL, params, X, T, NULL)
    del params["label_embedding"]
    without = MODEL.clone(class_conditional=False)
    assert paths(shapes(without)) == paths(params)
    np.testing.assert_array_equal(apply(without, params, X, T, Y), with_null)
    assert program(without, {}) == program(without)


def test_the_examples_of_a_batch_do_not_see_each_other() -> None:
    order = np.asarray([2, 0, 3, 1])
    out = apply(MODEL, stirred(MODEL), X, T, Y)
    np.testing.assert_allclose(apply(MODEL, stirred(MODEL), X[order], T[order], Y[order]), out[order], atol=1e-4)


@pytest.mark.parametrize("model", [MODEL, PLAIN])
def test_the_output_depends_on_image_time_and_label(model: ADMUNet) -> None:
    params, noise = stirred(model), RANDOM.normal(size=X.shape).astype(np.float32)
    out = apply(model, params, X, T, Y)
    for changed in ((X + noise, T, Y), (X, T + 10, Y), (X, T, (Y + 1) % 4)):
        difference = np.abs(apply(model, params, *changed) - out)
        assert np.all(np.max(difference, axis=(1, 2, 3)) > 1e-3 * np.abs(out).max())


def test_a_mirrored_image_gives_the_mirrored_output_where_kernels_are_their_own_mirror_images() -> None:
    """Only the convolutions distinguish left from right and up from down, and every pixel is treated alike."""
    for model in (MODEL, MODEL.clone(resblock_updown=False, conv_resample=False)):
        for axis in (0, 1):
            both = [leaf + np.flip(leaf, axis) if leaf.ndim == 4 else leaf for leaf in jax.tree.leaves(stirred(model))]
            params = jax.tree.unflatten(jax.tree.structure(stirred(model)), both)
            out = apply(model, params, X, T, Y)
            assert error(apply(model, params, np.flip(X, axis + 1), T, Y), np.flip(out, axis + 1)) < 1e-4
            assert error(out, np.flip(out, axis + 1)) > 1e-2


def test_the_orders_of_attention_differ_by_a_permutation_of_the_projection() -> None:
    """Legacy: head 0's queries, keys, values, then head 1's; new: all queries, all keys, all values."""
    new, params = MODEL.clone(attention_order="new"), stirred(MODEL)
    d, heads = 96, MODEL.num_heads
    columns = np.arange(3 * d).reshape(heads, 3, d // heads).swapaxes(0, 1).reshape(-1)

    def moved(path: Any, leaf: np.ndarray) -> np.ndarray:
        return leaf[..., columns] if "qkv" in jax.tree_util.keystr(path) else leaf

    out = apply(MODEL, params, X, T, Y)
    assert error(apply(new, params, X, T, Y), out) > 1e-3
    assert error(apply(new, jax.tree_util.tree_map_with_path(moved, params), X, T, Y), out) < 1e-5


def test_heads_are_counted_or_measured_and_the_decoder_may_have_others() -> None:
    assert program(MODEL.clone(num_head_channels=48)) == program(MODEL)
    six = MODEL.clone(num_heads=6)
    assert program(MODEL.clone(num_head_channels=16)) == program(six) != program(MODEL)
    for model, heads in ((MODEL, {"2"}), (MODEL.clone(num_heads_upsample=4), {"2", "4"})):
        assert set(re.findall(r"f32\[4,(\d),6,6\]", program(model))) == heads  # weights of attention over 6 pixels


@pytest.mark.parametrize(("factors", "levels"), [((), []), ((1,), [0]), ((2, 4), [1, 2])])
def test_attention_stands_where_it_is_asked_for_and_in_the_middle(factors: tuple[int, ...], levels: list[int]) -> None:
    model = MODEL.clone(channel_mult=(2, 3, 3), attention_downsamples=factors)
    found = {path.split("/")[1] for path in paths(shapes(model, X[:, :, :4])) if "attention" in path}
    down = {f"down_{level}_attention_0" for level in levels}
    assert found == down | {f"up_{level}_attention_{i}" for level in levels for i in (0, 1)} | {"middle_attention"}


def test_dropout_is_active_where_its_rng_is_given_and_has_a_rate_a_level() -> None:
    dropping, rngs = MODEL.clone(dropout=0.5), {"dropout": jax.random.key(0)}
    assert program(dropping) == program(MODEL) == program(MODEL.clone(dropout=(0.0, 0.0)), rngs=rngs)
    out = apply(MODEL, stirred(MODEL), X, T, Y)
    one, other = (apply(dropping, stirred(MODEL), X, T, Y, {"dropout": jax.random.key(seed)}) for seed in (0, 1))
    assert error(one, out) > 1e-2 and error(one, other) > 1e-2
    for rates, width in (((0.5, 0.0), "64"), ((0.0, 0.5), "96")):
        text = program(MODEL.clone(dropout=rates), rngs=rngs)
        assert set(re.findall(r"random_bits\[.*?shape=\(4, \d, \d, (\d+)\)", text, re.DOTALL)) == {width}


def test_remat_changes_neither_parameters_nor_gradients() -> None:
    """The gradient is the slope, by finite differences, of the network that computes nothing again."""
    assert shapes(AGAIN) == shapes(MODEL)
    params, step = stirred(MODEL), 1e-3
    slopes = gradient(AGAIN, params, Y)
    for seed in range(3):
        random = np.random.default_rng(seed)
        way = jax.tree.map(lambda leaf, random=random: random.normal(0, 0.1, leaf.shape), params)
        ends = [jax.tree.map(lambda a, b, s=s: np.float32(a + s * b), params, way) for s in (step, -step)]
        above, below = (np.sum(np.square(apply(MODEL, end, X, T, Y), dtype=np.float64)) for end in ends)
        slope = sum(map(np.vdot, *map(jax.tree.leaves, (slopes, way))))
        assert (above - below) / (2 * step) == pytest.approx(slope, rel=1e-2)


def test_bfloat16_keeps_parameters_norms_and_output_in_float32_and_stays_close() -> None:
    model, params = MODEL.clone(dtype=jnp.bfloat16), stirred(MODEL)
    assert shapes(model) == shapes(MODEL)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes(model))} == {jnp.dtype(jnp.float32)}
    rough, exact = apply(model, params, X, T, Y), apply(MODEL, params, X, T, Y)
    assert rough.dtype == jnp.float32 and 1e-5 < error(rough, exact) < 5e-2

    _, state = jax.eval_shape(lambda p: model.apply({"params": p}, X, T, LABELS, capture_intermediates=True), params)
    outputs = dict(zip(paths(state["intermediates"]), jax.tree.leaves(state["intermediates"]), strict=True))
    precise = ("norm", "time_embedding", "/output", "output/")
    for path, leaf in outputs.items():
        float32 = any(word in f"/{path}" for word in precise) or path.startswith("__call__")
        assert leaf.dtype == (jnp.float32 if float32 or "label" in path else jnp.bfloat16), path
    assert sum("norm" in path for path in outputs) > 10


def bilinear(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """(h, w) -> (height, width), pixel by pixel: centres of pixels lie at half-integers."""

    def weights(old: int, new: int) -> np.ndarray:
        place = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
        return np.maximum(0, 1 - np.abs(place[:, None] - np.arange(old)))

    return weights(image.shape[0], height) @ image @ weights(image.shape[1], width).T


@pytest.mark.parametrize("size", [(4, 6), (5, 3), (8, 2), (2, 3), (1, 1)])
def test_small_images_are_resized_bilinearly_between_pixel_centres(size: tuple[int, int]) -> None:
    expected = [[bilinear(SMALL[b, ..., c], *size) for c in range(C)] for b in range(B)]
    np.testing.assert_allclose(resized(SMALL, *size), np.moveaxis(expected, 1, -1), atol=1e-6)


def test_an_upsampler_is_a_network_that_sees_both_images() -> None:
    model = MODEL.clone(super_resolution=True, channel_mult=(2,), attention_downsamples=())
    both = np.concatenate([X, resized(SMALL, H, W)], axis=-1)
    wide = model.clone(super_resolution=False, out_channels=C)
    like = shapes(model, y={"label": Y, "low_res": SMALL})
    assert like == shapes(wide, both)
    params = jax.tree.map(lambda leaf: np.random.default_rng(leaf.size).normal(0, 0.1, leaf.shape), like)
    out = apply(model, params, X, T, {"label": Y, "low_res": SMALL})
    np.testing.assert_allclose(out, apply(wide, params, both, T, Y), rtol=1e-4, atol=1e-4)
    assert error(apply(model, params, X, T, {"label": Y, "low_res": -SMALL}), out) > 1e-3
    for y in ({"label": Y}, {"low_res": SMALL}):
        with pytest.raises(UserError) as caught:
            shapes(model, y=y)
        assert caught.value.field == "condition"


@pytest.mark.parametrize("size", [8, 32])
def test_the_tiny_preset_takes_small_images_of_any_channels(size: int) -> None:
    tree = shapes(ADMUNet(num_classes=10, **PRESETS["tiny"]), np.zeros((1, size, size, 1), np.float32))
    assert sum(leaf.size for leaf in jax.tree.leaves(tree)) < 1e6


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        (dict(model_channels=48), "model.channel_mult"),
        (dict(model_channels=0), "model.model_channels"),
        (dict(model_channels=33, channel_mult=(32,)), "model.model_channels"),
        (dict(num_res_blocks=0), "model.num_res_blocks"),
        (dict(channel_mult=()), "model.channel_mult"),
        (dict(channel_mult=(1, 0)), "model.channel_mult"),
        (dict(channel_mult=(1, 1, 1)), "model.channel_mult"),
        (dict(num_heads=5), "model.num_heads"),
        (dict(num_heads=0), "model.num_heads"),
        (dict(num_head_channels=64), "model.num_head_channels"),
        (dict(num_head_channels=-1), "model.num_head_channels"),
        (dict(num_heads_upsample=5), "model.num_heads_upsample"),
        (dict(attention_downsamples=(3,)), "model.attention_downsamples"),
        (dict(attention_order="newer"), "model.attention_order"),
        (dict(dropout=1.0), "model.dropout"),
        (dict(dropout=(0.1,)), "model.dropout"),
        (dict(out_channels=-1), "model.out_channels"),
        (dict(num_classes=None), "model.num_classes"),
        (dict(num_classes=0), "model.num_classes"),
    ],
)
def test_fields_out_of_their_range_are_named(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError) as caught:
        shapes(ADMUNet(**FIELDS | fields))
    assert caught.value.field == named
