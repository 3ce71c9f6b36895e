"""Laws of a text in ADM's U-Net: its tokens join the pixels' keys and values, its vector joins the time (GLIDE)."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archirf_jax.errors import UserError
from archirf_jax.models.adm_layers import ORDERS, Attention
from archirf_jax.models.adm_unet import ADMUNet
from archirf_jax.models.text_transformer import TextTransformer

WIDTH, POOLED, L = 6, 5, 4
PLAIN = ADMUNet(
    class_conditional=False,
    model_channels=32,
    num_res_blocks=1,
    channel_mult=(1, 2),
    attention_downsamples=(2,),
    num_heads=2,
)
MODEL = PLAIN.clone(context_width=WIDTH, pooled_width=POOLED)
RANDOM = np.random.default_rng(0)
B, H, W, C = 4, 4, 6, 3  # not square, so that a mix-up of rows and columns shows
X = RANDOM.normal(size=(B, H, W, C)).astype(np.float32)
T = np.asarray([0.0, 120.0, 500.0, 999.0], np.float32)
TEXT: dict[str, Any] = {
    "tokens": RANDOM.normal(size=(B, L, WIDTH)).astype(np.float32),
    "mask": np.asarray([[True] * L, [True, False, True, False], [False, True, True, True], [False] * L]),
    "pooled": RANDOM.normal(size=(B, POOLED)).astype(np.float32),
}
NO_TOKENS = {"mask": np.zeros((B, L), bool)}


@functools.partial(jax.jit, static_argnums=0)
def apply(model: ADMUNet, params: Any, x: Any, t: Any, condition: Any) -> Any:
    return model.apply({"params": params}, x, t, condition)


def shapes(model: ADMUNet, condition: Any = TEXT) -> Any:
    return jax.eval_shape(model.init, jax.random.key(0), X, T, condition)["params"]


@functools.cache
def stirred(model: ADMUNet) -> Any:
    """Parameters without zeros, so that every branch counts."""
    random = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: random.normal(0, 0.3, leaf.shape).astype(np.float32), shapes(model))


def answer(model: ADMUNet = MODEL, **changes: Any) -> np.ndarray:
    given = changes.pop("x", X), changes.pop("t", T)
    return np.asarray(apply(model, stirred(model), *given, TEXT | changes))


def moved(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(B,) how far each answer moved, in parts of the largest number."""
    return np.max(np.abs(a - b), axis=(1, 2, 3)) / np.abs(b).max()


def of_text(path: str) -> bool:
    """Whether a parameter is there for texts alone."""
    return "text_key_value" in path or "pooled_embedding" in path


@pytest.mark.parametrize("order", ORDERS)
def test_one_softmax_goes_over_pixels_and_tokens(order: str) -> None:
    """By hand: of each pixel over all pixels and the first tokens, with keys and values of their own projection."""
    d, heads, lengths = 32, 2, [L, 2]
    module, tokens = Attention(heads, order), TEXT["tokens"][:2]
    x = RANDOM.normal(size=(2, 2, 3, d)).astype(np.float32)
    text = (tokens, jnp.asarray(lengths))
    like = jax.eval_shape(module.init, jax.random.key(0), x, text)["params"]
    params = jax.tree.map(lambda leaf: RANDOM.normal(0, 0.3, leaf.shape).astype(np.float32), like)
    found = module.apply({"params": params}, x, text)

    def projected(name: str, of: np.ndarray, parts: int) -> np.ndarray:
        """(parts, heads, tokens, width)."""
        flat = of @ params[name]["kernel"] + params[name]["bias"]
        if order == "legacy":
            return flat.reshape(len(of), heads, parts, -1).transpose(2, 1, 0, 3)
        return flat.reshape(len(of), parts, heads, -1).transpose(1, 2, 0, 3)

    for image, words, length, out in zip(x, tokens, lengths, found, strict=True):
        pixels = image.reshape(-1, d)
        normed = (pixels - pixels.mean(0)) / np.sqrt(pixels.var(0) + 1e-5)  # as many groups as channels
        normed = normed * params["norm"]["scale"] + params["norm"]["bias"]
        q, k, v = projected("qkv", normed, 3)
        more_k, more_v = projected("text_key_value", words[:length], 2)
        mixed = []
        for head in range(heads):
            keys, values = np.concatenate([k[head], more_k[head]]), np.concatenate([v[head], more_v[head]])
            weights = np.exp(q[head] @ keys.T / np.sqrt(d / heads))
            mixed.append(weights / weights.sum(axis=1, keepdims=True) @ values)
        expected = pixels + np.concatenate(mixed, axis=1) @ params["out"]["kernel"] + params["out"]["bias"]
        np.testing.assert_allclose(np.reshape(out, (-1, d)), expected, rtol=1e-4, atol=1e-4)


def test_every_attention_reads_the_text() -> None:
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(shapes(MODEL))]
    with_text = {path.partition("['text_key_value']")[0] for path in paths if "text_key_value" in path}
    assert with_text == {path.partition("['qkv']")[0] for path in paths if "'qkv'" in path} and len(with_text) == 4
    slopes = jax.jit(jax.grad(lambda params: jnp.sum(jnp.square(MODEL.apply({"params": params}, X, T, TEXT)))))
    found = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(slopes(stirred(MODEL)))}
    largest = max(np.abs(leaf).max() for leaf in found.values())
    own = {path: leaf for path, leaf in found.items() if of_text(path)}
    assert len(own) == 2 * (4 + 1)  # kernels and biases, that of the vector too
    assert all(1e-6 * largest < np.abs(leaf).max() < np.inf for leaf in own.values())


def test_without_a_text_it_is_the_network_of_images() -> None:
    """No field, no parameter; and a text without tokens leaves the softmax to the pixels."""
    ours, theirs = (jax.tree.leaves_with_path(shapes(model)) for model in (MODEL, PLAIN))
    assert [(path, leaf) for path, leaf in ours if not of_text(jax.tree_util.keystr(path))] == theirs
    tokens_alone = MODEL.clone(pooled_width=None)
    params = stirred(tokens_alone)
    kept = [leaf for path, leaf in jax.tree.leaves_with_path(params) if not of_text(jax.tree_util.keystr(path))]
    plain = np.asarray(apply(PLAIN, jax.tree.unflatten(jax.tree.structure(shapes(PLAIN)), kept), X, T, {}))
    found = apply(tokens_alone, params, X, T, TEXT | NO_TOKENS)
    np.testing.assert_allclose(found, plain, atol=1e-5 * np.abs(plain).max())
    assert np.all(moved(answer(tokens_alone)[:3], plain[:3]) > 1e-3)


@pytest.mark.parametrize(
    ("fields", "condition", "field"),
    [
        ({}, {}, "condition"),
        ({}, {"tokens": TEXT["tokens"]}, "condition"),
        ({"context_width": 7}, TEXT, "model.context_width"),
        ({"context_width": 0}, TEXT, "model.context_width"),
        ({"pooled_width": 4}, TEXT, "model.pooled_width"),
        ({"null_tokens": -1}, TEXT, "model.null_tokens"),
        ({"null_tokens": 2, "context_width": None}, TEXT, "model.null_tokens"),
    ],
)
def test_what_does_not_fit_is_named(fields: Any, condition: Any, field: str) -> None:
    with pytest.raises(UserError) as caught:
        shapes(MODEL.clone(**fields), condition)
    assert caught.value.field == field


def test_the_last_token_is_the_last_one_that_the_mask_shows() -> None:
    model = TextTransformer(vocab_size=7, max_length=L, hidden_size=8, depth=1, num_heads=2, pooling="last")
    ids = np.asarray([[1, 2, 3, 4], [5, 6, 0, 0], [1, 0, 2, 0], [0, 0, 0, 0]], np.int32)
    mask = ids > 0
    found = jax.jit(lambda: model.init_with_output(jax.random.key(0), ids, mask)[0])()
    last = np.asarray([found["tokens"][row, place] for row, place in enumerate((3, 1, 2, 0))])
    np.testing.assert_allclose(found["pooled"], last * mask.any(axis=1, keepdims=True), rtol=1e-6)
    assert np.all(np.abs(found["pooled"][:3]).max(axis=1) > 0.1)
    with pytest.raises(UserError) as caught:
        jax.eval_shape(model.clone(pooling="first").init, jax.random.key(0), ids, mask)
    assert caught.value.field == "model.pooling"
