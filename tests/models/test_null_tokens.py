"""Laws of a learned text for no text: dropped examples alone train it, and guidance leads away from it."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archirf_jax.errors import UserError
from archirf_jax.models.adm_unet import ADMUNet
from archirf_jax.models.dit import DiT
from archirf_jax.models.mmdit import MMDiT
from archirf_jax.processes.rectified_flow import RectifiedFlow
from archirf_jax.samplers.denoisers import NetworkDenoiser
from archirf_jax.samplers.guidance import classifier_free

RANDOM = np.random.default_rng(0)
B, L, WIDTH, POOLED = 3, 4, 6, 5
X = RANDOM.normal(size=(B, 4, 4, 2)).astype(np.float32)
T = np.asarray([0.1, 0.4, 0.8], np.float32)
TEXT = {
    "tokens": RANDOM.normal(size=(B, L, WIDTH)).astype(np.float32),
    "pooled": RANDOM.normal(size=(B, POOLED)).astype(np.float32),
    "mask": np.asarray([[True, True, False, True], [False] * 4, [True] * 4]),
}
THERE = TEXT["mask"].any(axis=1)
NONE = {name: np.zeros_like(value[0]) for name, value in TEXT.items()}  # as conditioners say it
SIZE: dict[str, Any] = dict(hidden_size=8, depth=1, num_heads=2, context_width=WIDTH, null_tokens=2)
MODELS: dict[str, Any] = {
    "dit": DiT(**SIZE, conditioning="cross_attention"),
    "dit, in context": DiT(**SIZE, conditioning="in_context", pooled_width=POOLED),
    "mmdit": MMDiT(**SIZE, context="text", pooled_width=POOLED),
    "adm": ADMUNet(
        class_conditional=False,
        model_channels=32,
        num_res_blocks=1,
        channel_mult=(1,),
        attention_downsamples=(),
        context_width=WIDTH,
        pooled_width=POOLED,
        null_tokens=2,
    ),
}
every_model = pytest.mark.parametrize("name", MODELS)
# A U-Net takes as long as the others together, and is given its texts by the same module.
cheap_models = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n == "adm")) for n in MODELS]
)


def own(params: Any) -> dict[str, Any]:
    """The parameters that stand for no text."""
    inside = params.get("context", {}) if "null_tokens" not in params else params
    return {name: leaf for name, leaf in inside.items() if name.startswith("null_")}


@functools.cache
def stirred(model: Any) -> Any:
    shapes = jax.eval_shape(model.init, jax.random.key(0), X, T, TEXT)["params"]
    random = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: random.normal(0, 0.3, leaf.shape).astype(np.float32), shapes)


@functools.cache
def answers(model: Any) -> Any:
    return jax.jit(lambda params, condition: model.apply({"params": params}, X, T, condition))


@every_model
def test_without_the_field_there_is_no_such_parameter(name: str) -> None:
    model = MODELS[name]
    assert own(stirred(model)).keys() == ({"null_tokens"} if name == "dit" else {"null_tokens", "null_pooled"})
    assert not own(stirred(model.clone(null_tokens=0)))


@cheap_models
def test_it_has_gradients_of_dropped_examples_alone(name: str) -> None:
    model, params = MODELS[name], stirred(MODELS[name])
    each = jax.jit(jax.jacrev(lambda params: jnp.sum(jnp.square(answers(model)(params, TEXT)), axis=(1, 2, 3))))
    for leaf in own(each(params)).values():
        moved = np.abs(np.asarray(leaf)).reshape(B, -1).max(axis=1)
        assert np.all((moved > 1e-6) == ~THERE) and np.all(moved[THERE] == 0)


@every_model
@pytest.mark.parametrize("count", [2, L, L + 2])
def test_it_stands_where_there_is_no_text_as_a_text_would(name: str, count: int) -> None:
    model = MODELS[name].clone(null_tokens=count)
    params = stirred(model)
    found = np.asarray(answers(model)(params, TEXT))
    learned, absent = own(params), np.flatnonzero(~THERE)[0]
    length = max(count, L)
    given = {key: np.pad(TEXT[key], ((0, 0), (0, length - L), *[(0, 0)] * (TEXT[key].ndim - 2))) for key in TEXT}
    given["pooled"] = TEXT["pooled"].copy()
    given["tokens"][absent, :count], given["mask"][absent] = learned["null_tokens"], np.arange(length) < count
    given["pooled"][absent] = learned.get("null_pooled", 0)
    np.testing.assert_allclose(answers(model)(params, given), found, atol=1e-5)
    other = TEXT | {"tokens": np.where(THERE[:, None, None], TEXT["tokens"], 9.0)}
    np.testing.assert_array_equal(answers(model)(params, other), found)


@cheap_models
def test_guidance_leads_away_from_it(name: str) -> None:
    model, params = MODELS[name], stirred(MODELS[name])
    every = TEXT | {"mask": np.ones_like(TEXT["mask"])}

    def guided(null: Any, scale: float) -> jax.Array:
        whole = params | {"context": params["context"] | null} if name == "mmdit" else params | null

        def network(x: Any, t: Any, condition: Any, *, s: Any = None) -> Any:
            return model.apply({"params": whole}, x, t, condition), {}

        denoise: Any = NetworkDenoiser(RectifiedFlow(), network)
        denoise = denoise if scale == 1 else classifier_free.build(denoise, NONE, scale=scale)
        return denoise(jnp.asarray(X), jnp.asarray(T), every, denoise.init(jnp.asarray(X)), s=None)[0].x0

    change = jax.jit(jax.jacfwd(guided), static_argnums=1)
    for scale, uses in ((1.0, False), (3.0, True)):
        slopes = change(own(params), scale)
        assert all(bool(np.any(np.abs(leaf) > 1e-6)) == uses for leaf in jax.tree.leaves(slopes))


@pytest.mark.parametrize(
    ("model", "condition", "field"),
    [
        (MODELS["dit"], {"tokens": TEXT["tokens"]}, "condition"),
        (MODELS["dit"].clone(context_width=None), {}, "model.null_tokens"),
        (MODELS["mmdit"].clone(context="class_tokens"), {}, "model.null_tokens"),
        (MODELS["mmdit"].clone(null_tokens=-1), TEXT, "model.null_tokens"),
        (MODELS["mmdit"].clone(context_width=7), TEXT, "model.context_width"),
    ],
)
def test_what_cannot_be_is_named(model: Any, condition: Any, field: str) -> None:
    with pytest.raises(UserError) as caught:
        jax.eval_shape(model.init, jax.random.key(0), X, T, condition)
    assert caught.value.field == field
