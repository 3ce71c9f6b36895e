"""Every network that reads texts: hidden tokens do not count, shown ones and pooled vectors do, each image its own."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
import pytest

from archirf_jax.models.adm_unet import ADMUNet
from archirf_jax.models.dit import DiT
from archirf_jax.models.latent_unet import LatentUNet
from archirf_jax.models.mmdit import MMDiT

WIDTH, POOLED, B, L = 6, 5, 4, 5
READS: dict[str, Any] = dict(context_width=WIDTH, pooled_width=POOLED)
SIZE: dict[str, Any] = dict(hidden_size=16, depth=2, num_heads=2)
DEEP: dict[str, Any] = dict(positions="rotary", registers=1, qk_norm="rms")
MODELS: dict[str, Any] = {
    "dit, cross_attention": DiT(**READS, **SIZE, conditioning="cross_attention"),
    "dit, in_context": DiT(**READS, **SIZE, **DEEP, conditioning="in_context"),
    "mmdit": MMDiT(**READS, **SIZE, depth_single=1, context="text"),
    "latent_unet": LatentUNet(
        **READS, block_out_channels=(8, 16), layers_per_block=1, transformer_depth=1, num_heads=2, norm_num_groups=2
    ),
    "adm_unet": ADMUNet(
        **READS,
        class_conditional=False,
        model_channels=32,
        num_res_blocks=1,
        channel_mult=(1, 2),
        attention_downsamples=(2,),
        num_heads=2,
    ),
}
RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(B, 4, 6, 2)).astype(np.float32)  # not square, so that a mix-up of rows and columns shows
T = np.asarray([0.0, 120.0, 500.0, 999.0], np.float32)
TEXT: dict[str, Any] = {
    "tokens": RANDOM.normal(size=(B, L, WIDTH)).astype(np.float32),
    "mask": np.asarray([[True] * 5, [True, False, True, False, False], [False, True, True, True, False], [False] * 5]),
    "pooled": RANDOM.normal(size=(B, POOLED)).astype(np.float32),
}
every_network = pytest.mark.parametrize("name", MODELS)


@functools.cache
def made(name: str) -> tuple[Any, Any]:
    """(the network as a function, parameters without zeros, so that every branch counts)."""
    model, random = MODELS[name], np.random.default_rng(1)
    like = jax.eval_shape(model.init, jax.random.key(0), X, T, TEXT)["params"]
    params = jax.tree.map(lambda leaf: random.normal(0, 0.3, leaf.shape).astype(np.float32), like)
    return jax.jit(lambda params, x, t, text: model.apply({"params": params}, x, t, text)), params


def answer(name: str, rows: Any = np.s_[:], **changes: Any) -> np.ndarray:
    apply, params = made(name)
    return np.asarray(apply(params, X[rows], T[rows], TEXT | changes))


def moved(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(B,) how far each answer moved, in parts of the largest number."""
    return np.max(np.abs(a - b), axis=(1, 2, 3)) / np.abs(b).max()


@every_network
def test_tokens_that_the_mask_hides_change_nothing_and_each_that_it_shows_does(name: str) -> None:
    found = answer(name)
    assert np.all(np.isfinite(found))  # without any token too
    hidden = np.where(TEXT["mask"][..., None], TEXT["tokens"], np.float32(np.nan))
    np.testing.assert_array_equal(answer(name, tokens=hidden), found)
    for place in range(L):
        tokens = TEXT["tokens"].copy()
        tokens[:, place] += 1
        assert np.all((moved(answer(name, tokens=tokens), found) > 1e-4) == TEXT["mask"][:, place]), place


@every_network
def test_a_text_that_nothing_hides_needs_no_mask(name: str) -> None:
    apply, params = made(name)
    with_mask = answer(name)
    without = apply(params, X, T, {key: value for key, value in TEXT.items() if key != "mask"})
    np.testing.assert_allclose(without[0], with_mask[0], atol=1e-4 * np.abs(with_mask).max())
    assert np.all(moved(np.asarray(without), with_mask)[1:] > 1e-4)


@every_network
def test_the_pooled_vector_counts(name: str) -> None:
    assert np.all(moved(answer(name, pooled=TEXT["pooled"] + 1), answer(name)) > 1e-3)


@every_network
def test_each_image_reads_its_own_text(name: str) -> None:
    order, found = np.asarray([2, 0, 3, 1]), answer(name)
    out = answer(name, order, **{key: value[order] for key, value in TEXT.items()})
    np.testing.assert_allclose(out, found[order], atol=1e-4 * np.abs(found).max())
    swapped = answer(name, **{key: value[[1, 0, 2, 3]] for key, value in TEXT.items()})
    assert np.all((moved(swapped, found) > 1e-3) == [True, True, False, False])
