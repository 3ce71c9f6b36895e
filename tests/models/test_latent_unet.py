"""Laws of latent diffusion's U-Net: silence at initialisation, conditions, masks, sizes of images, and precision."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archirf_jax.errors import UserError
from archirf_jax.models.latent_unet import LatentUNet
from archirf_jax.models.latent_unet_levels import levels_of

# Everything at once: both kinds of first attention (the middle's reads pixels), size, noise level and a small image.
FIELDS: dict[str, Any] = dict(
    block_out_channels=(8, 16),
    layers_per_block=1,
    transformer_depth=(1, 0),
    num_heads=(2, 4),
    only_cross_attention=(True, False),
    context_width=6,
    norm_num_groups=2,
    pooled_width=5,
    size_width=4,
    noise_levels=7,
    low_res=True,
)
MODEL = LatentUNet(**FIELDS)
AGAIN = MODEL.clone(remat=True)
PLAIN = LatentUNet(
    block_out_channels=(8, 16), transformer_depth=(0, 1), num_heads=2, context_width=6, norm_num_groups=2
)
RANDOM = np.random.default_rng(0)
B, H, W, C, L = 3, 4, 6, 2, 5  # not square, so that a mix-up of rows and columns shows
X = RANDOM.normal(size=(B, H, W, C)).astype(np.float32)
T = np.asarray([0.0, 120.0, 999.0], np.float32)
CONDITION: dict[str, Any] = {
    "tokens": RANDOM.normal(size=(B, L, 6)).astype(np.float32),
    "mask": np.asarray([[True] * 5, [True, False, True, False, False], [False, True, True, True, False]]),
    "pooled": RANDOM.normal(size=(B, 5)).astype(np.float32),
    "size": RANDOM.uniform(0, 1000, (B, 6)).astype(np.float32),
    "noise_level": np.asarray([0, 6, 3], np.int32),
    "low_res": RANDOM.normal(size=(B, 2, 3, 3)).astype(np.float32),
}


@functools.partial(jax.jit, static_argnums=0)
def apply(model: LatentUNet, params: Any, x: Any, t: Any, condition: Any) -> Any:
    return model.apply({"params": params}, x, t, condition)


@functools.partial(jax.jit, static_argnums=0)
def gradient(model: LatentUNet, params: Any) -> Any:
    """Of the summed square of the output."""
    return jax.grad(lambda params: jnp.sum(jnp.square(model.apply({"params": params}, X, T, CONDITION))))(params)


def shapes(model: LatentUNet, x: Any = X, condition: Any = None) -> Any:
    given = CONDITION if condition is None else condition
    return jax.eval_shape(model.init, jax.random.key(0), x, T, given)["params"]


@functools.cache
def stirred(model: LatentUNet) -> Any:
    """Parameters without zeros, so that every branch counts."""
    random = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: random.normal(0, 0.3, leaf.shape).astype(np.float32), shapes(model))


def answer(**changes: Any) -> Any:
    """Of MODEL, with other conditions, images "x" or times "t"."""
    return apply(MODEL, stirred(MODEL), changes.pop("x", X), changes.pop("t", T), CONDITION | changes)


def refusal(model: LatentUNet, condition: Any = None) -> UserError:
    with pytest.raises(UserError) as caught:
        shapes(model, condition=condition)
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.slow
def test_every_parameter_gets_a_gradient() -> None:
    found = gradient(AGAIN, stirred(MODEL))
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(found))
    for path, leaf in jax.tree.leaves_with_path(found):
        assert 1e-6 * largest < np.abs(leaf).max() < np.inf, jax.tree_util.keystr(path)


@pytest.mark.slow
def test_gradients_are_the_same_where_blocks_keep_no_activations() -> None:
    """They are the slope, by finite differences, of the network that keeps them."""
    assert shapes(AGAIN) == shapes(MODEL)
    slopes, step = gradient(AGAIN, stirred(MODEL)), 1e-3
    for seed in range(3):
        random = np.random.default_rng(seed)
        way = jax.tree.map(lambda leaf, random=random: random.normal(0, 0.3, leaf.shape), stirred(MODEL))
        ends = [jax.tree.map(lambda a, b, s=s: np.float32(a + s * b), stirred(MODEL), way) for s in (step, -step)]
        above, below = (np.sum(np.square(apply(MODEL, end, X, T, CONDITION), dtype=np.float64)) for end in ends)
        slope = sum(map(np.vdot, *map(jax.tree.leaves, (slopes, way))))
        assert (above - below) / (2 * step) == pytest.approx(slope, rel=1e-2)


@pytest.mark.parametrize("what", ["x", "t", *(name for name in CONDITION if name != "mask")])
def test_the_output_depends_on_everything_that_it_is_given(what: str) -> None:
    given = {"x": X, "t": T, **CONDITION}[what]
    # One token that no mask hides; a noise level goes to another row of the table.
    change = np.zeros_like(given)
    change[:, 2 if what == "tokens" else ...] = -1 if what == "noise_level" else 1
    moved = np.abs(given + change) if what == "noise_level" else given + change
    difference = np.abs(answer(**{what: moved}) - answer())
    assert np.all(np.max(difference, axis=(1, 2, 3)) > 1e-4 * np.abs(answer()).max())


def test_tokens_that_the_mask_hides_have_no_effect_whatever_they_hold() -> None:
    tokens = np.where(CONDITION["mask"][..., None], CONDITION["tokens"], np.float32(np.nan))
    np.testing.assert_array_equal(answer(tokens=tokens), answer())
    every = answer(mask=np.ones((B, L), bool))
    np.testing.assert_allclose(every[0], answer()[0], rtol=1e-4, atol=1e-4)
    assert np.all(np.max(np.abs(every - answer())[1:], axis=(1, 2, 3)) > 1e-3)


def test_a_mask_leaves_what_a_shorter_text_would() -> None:
    kept = CONDITION["mask"][1]
    text = {"tokens": CONDITION["tokens"][1:2, kept], "mask": np.ones((1, kept.sum()), bool)}
    alone = apply(MODEL, stirred(MODEL), X[1:2], T[1:2], {key: value[1:2] for key, value in CONDITION.items()} | text)
    np.testing.assert_allclose(alone, answer()[1:2], rtol=1e-4, atol=1e-4)


def test_a_text_of_which_nothing_is_left_gives_numbers() -> None:
    assert np.all(np.isfinite(answer(mask=np.zeros((B, L), bool))))


def test_the_examples_of_a_batch_do_not_see_each_other() -> None:
    order = np.asarray([2, 0, 1])
    moved = answer(x=X[order], t=T[order], **{key: value[order] for key, value in CONDITION.items()})
    np.testing.assert_allclose(moved, answer()[order], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_half_precision_computes_nearly_the_same_and_keeps_parameters_in_full() -> None:
    half = MODEL.clone(dtype=jnp.bfloat16)
    assert shapes(half) == shapes(MODEL)
    out = apply(half, stirred(MODEL), X, T, CONDITION)
    assert out.dtype == jnp.float32
    assert 0 < np.linalg.norm(out - answer()) < 0.1 * np.linalg.norm(answer())


@pytest.mark.parametrize(("size", "channels"), [((1, 1), None), ((7, 5), 5)])
def test_images_of_any_size_are_answered_in_their_size(size: tuple[int, int], channels: int | None) -> None:
    x, model = np.zeros((B, *size, C), np.float32), MODEL.clone(out_channels=channels)
    out, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), x, T, CONDITION)
    assert out.shape == (B, *size, channels or C) and out.dtype == jnp.float32


def test_the_width_of_heads_is_another_way_to_number_them() -> None:
    assert levels_of(PLAIN.clone(num_head_channels=4)) == levels_of(PLAIN.clone(num_heads=(2, 4))) != levels_of(PLAIN)


def test_a_level_without_transformers_needs_no_fitting_heads_but_the_middle_does() -> None:
    assert shapes(PLAIN.clone(num_heads=(3, 4)))
    assert refusal(PLAIN.clone(num_heads=(2, 3))).field == "model.num_heads"
    assert refusal(PLAIN.clone(transformer_depth=(1, 0), num_heads=(2, 3))).field == "model.num_heads"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("block_out_channels", ()),
        ("block_out_channels", (8, 15)),
        ("block_out_channels", (0, 16)),
        ("block_out_channels", (8, 2**20)),
        ("layers_per_block", 0),
        ("layers_per_block", (1, 1, 1)),
        ("transformer_depth", -1),
        ("transformer_depth", (1, 2000)),
        ("middle_depth", 0),
        ("num_heads", 3),
        ("num_heads", 0),
        ("num_head_channels", 5),
        ("only_cross_attention", (True,)),
        ("context_width", 0),
        ("context_width", 7),
        ("norm_num_groups", 0),
        ("pooled_width", None),
        ("pooled_width", 4),
        ("size_width", 3),
        ("size_numbers", 5),
        ("noise_levels", 0),
        ("out_channels", 0),
        ("dropout", 1.0),
    ],
)
def test_fields_that_do_not_fit_are_named(field: str, value: Any) -> None:
    named = "size_width" if field == "pooled_width" and value is None else field
    assert refusal(MODEL.clone(**{field: value})).field == f"model.{named}"


def test_an_odd_first_width_is_refused() -> None:
    assert refusal(PLAIN.clone(block_out_channels=(9, 18), norm_num_groups=3)).field == "model.block_out_channels"


@pytest.mark.parametrize("name", [name for name in CONDITION if name != "mask"])
def test_a_missing_condition_is_named(name: str) -> None:
    raised = refusal(MODEL, {key: value for key, value in CONDITION.items() if key != name})
    assert raised.field == "condition" and name in str(raised)


def test_conditions_that_are_not_read_are_not_missed() -> None:
    assert shapes(PLAIN, condition={"tokens": CONDITION["tokens"]}) == shapes(PLAIN)
