"""Laws of importing Stable Diffusion 3 and 3.5: names and layouts of MMDiTX, fields from shapes, and the way back."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from archirf_jax.errors import UserError
from archirf_jax.interop import sd3
from archirf_jax.interop.weights import published_shapes, to_params, to_state
from archirf_jax.models.mmdit import PRESETS, MMDiT

CHANNELS = 3
SMALL: dict[str, Any] = dict(
    num_classes=1, context="text", context_width=5, pooled_width=7, hidden_size=16, depth=2, num_heads=2
) | dict(position_size=3)
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "normed": dict(qk_norm="rms"),
    "layer normed": dict(qk_norm="layer", use_bias=False),
    "dual": dict(dual_layers=(0, 2), depth=3, qk_norm="rms"),
    "gated": dict(mlp="swiglu"),
    "gated and wide": dict(mlp="swiglu", mlp_ratio=96.0),
    "scaled": dict(scale_only=True, registers=4),
    "many": dict(depth=11, hidden_size=8, num_heads=1, mlp_ratio=2.6),
    "wide": dict(mlp_ratio=120 / 44 + 1e-9, hidden_size=44, num_heads=1, patch_size=1),
    "bare": dict(context_width=None, pooled_width=None, depth=1),
    "sigma": dict(learn_sigma=True, position_size=None),
    "channels": dict(out_channels=5, patch_size=3),
    "everything": dict(
        mlp="swiglu", scale_only=True, norm="rms", use_bias=False, qk_norm="layer", registers=1, learn_sigma=True
    ),
}
every_variant = pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)


def shapes_of(model: MMDiT, channels: int = CHANNELS) -> Any:
    side = model.patch_size
    y = {"tokens": np.zeros((1, 1, model.context_width or model.hidden_size), np.float32)}
    y |= {"pooled": np.zeros((1, model.pooled_width), np.float32)} if model.pooled_width else {}
    x = np.zeros((1, side, side, channels), np.float32)
    return jax.eval_shape(model.init, jax.random.key(0), x, np.zeros(1, np.float32), y)["params"]


def filled(model: MMDiT) -> Any:
    """Parameters of normal numbers."""
    random = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: random.normal(size=leaf.shape).astype(np.float32), shapes_of(model))


def linear(name: str, inputs: int, outputs: int, bias: bool = True) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs)} | ({f"{name}.bias": (outputs,)} if bias else {})


def attention(model: MMDiT, name: str, ends: bool = False) -> dict[str, tuple[int, ...]]:
    d, head = model.hidden_size, model.hidden_size // model.num_heads
    shapes = linear(f"{name}.qkv", d, 3 * d, model.use_bias)
    for norm in ("ln_q", "ln_k") if model.qk_norm else ():
        shapes[f"{name}.{norm}.weight"] = (head,)
        shapes |= {f"{name}.{norm}.bias": (head,)} if model.qk_norm == "layer" else {}
    return shapes | ({} if ends else linear(f"{name}.proj", d, d))


def stream(model: MMDiT, name: str, dual: bool = False, ends: bool = False) -> dict[str, tuple[int, ...]]:
    d, hidden = model.hidden_size, int(model.hidden_size * model.mlp_ratio)
    vectors = (1 if ends else 4) if model.scale_only else 9 if dual else (2 if ends else 6)
    shapes = linear(f"{name}.adaLN_modulation.1", d, vectors * d) | attention(model, f"{name}.attn", ends)
    if dual:
        shapes |= attention(model, f"{name}.attn2")
    if ends:
        return shapes
    if model.mlp == "gelu":
        return shapes | linear(f"{name}.mlp.fc1", d, hidden) | linear(f"{name}.mlp.fc2", hidden, d)
    gated = 256 * -(-int(2 * hidden / 3) // 256)
    for part, (inputs, outputs) in dict(w1=(d, gated), w2=(gated, d), w3=(d, gated)).items():
        shapes |= linear(f"{name}.mlp.{part}", inputs, outputs, bias=False)
    return shapes


def published(model: MMDiT, channels: int = CHANNELS) -> dict[str, tuple[int, ...]]:
    """The reference's `state_dict`, written down from it: linear layers out x in."""
    d, p = model.hidden_size, model.patch_size
    out = model.out_channels or channels * (2 if model.learn_sigma else 1)
    shapes: dict[str, tuple[int, ...]] = {"x_embedder.proj.weight": (d, channels, p, p), "x_embedder.proj.bias": (d,)}
    shapes |= {"pos_embed": (1, model.position_size**2, d)} if model.position_size else {}
    shapes |= {"register": (1, model.registers, d)} if model.registers else {}
    shapes |= linear("t_embedder.mlp.0", 256, d) | linear("t_embedder.mlp.2", d, d)
    if model.pooled_width:
        shapes |= linear("y_embedder.mlp.0", model.pooled_width, d) | linear("y_embedder.mlp.2", d, d)
    shapes |= linear("context_embedder", model.context_width, d) if model.context_width else {}
    for i in range(model.depth):
        shapes |= stream(model, f"joint_blocks.{i}.x_block", dual=i in model.dual_layers)
        shapes |= stream(model, f"joint_blocks.{i}.context_block", ends=i == model.depth - 1)
    return shapes | linear("final_layer.adaLN_modulation.1", d, 2 * d) | linear("final_layer.linear", d, p * p * out)


@every_variant
def test_names_and_shapes_are_those_of_the_reference(changes: dict[str, Any]) -> None:
    model = MMDiT(**SMALL | changes)
    assert published_shapes(shapes_of(model), sd3.rename(model)) == published(model)


@every_variant
def test_shapes_tell_the_network_and_tensors_come_back_bit_for_bit(changes: dict[str, Any]) -> None:
    model = MMDiT(**SMALL | changes)
    params = filled(model)
    state = to_state(params, sd3.rename(model))
    hints = {"num_heads": model.num_heads, "norm": model.norm}
    found = MMDiT(**sd3.fields({name: np.shape(value) for name, value in state.items()}, hints))
    assert found == model.clone(mlp_ratio=found.mlp_ratio)
    assert model.mlp == "swiglu" or found.mlp_ratio == pytest.approx(model.mlp_ratio, abs=1 / model.hidden_size)

    back = to_params(state, shapes_of(found), sd3.rename(found))
    assert jax.tree.structure(back) == jax.tree.structure(params)
    assert jax.tree.all(jax.tree.map(np.array_equal, back, params))


@pytest.mark.parametrize("name", ["sd3-medium", "sd3.5-medium", "sd3.5-large"])
def test_published_networks_need_no_hint(name: str) -> None:
    model = MMDiT(num_classes=1, **PRESETS[name])
    assert MMDiT(**sd3.fields(published(model, channels=16), {})) == model
    # Of each kind of block, there is one in three.
    model = model.clone(depth=3, dual_layers=model.dual_layers[:1])
    assert published_shapes(shapes_of(model, channels=16), sd3.rename(model)) == published(model, channels=16)


def test_norms_of_queries_tell_the_heads_and_others_need_a_hint() -> None:
    assert sd3.fields(published(MMDiT(**SMALL | dict(qk_norm="rms", num_heads=4))), {})["num_heads"] == 4
    for shapes in (published(MMDiT(**SMALL)), {}):
        with pytest.raises(UserError) as caught:
            sd3.fields(shapes, {})
        assert caught.value.field == "model.num_heads"
    assert sd3.fields(published(MMDiT(**SMALL)), {"num_heads": 8})["num_heads"] == 8


def test_the_norm_of_the_streams_has_no_tensors_and_is_a_hint() -> None:
    shapes = published(MMDiT(**SMALL | dict(norm="rms")))
    assert shapes == published(MMDiT(**SMALL))
    assert [sd3.fields(shapes, {"num_heads": 2} | hint)["norm"] for hint in ({}, {"norm": "rms"})] == ["layer", "rms"]


def test_every_missing_tensor_is_named() -> None:
    model = MMDiT(**SMALL | VARIANTS["dual"])
    like, rename = shapes_of(model), sd3.rename(model)
    state = to_state(filled(model), rename)
    for name in list(state)[:: len(state) // 8]:
        rest = {other: state[other] for other in state if other != name}
        with pytest.raises(UserError) as caught:
            to_params(rest, like, rename)
        assert caught.value.field == "checkpoint" and str(caught.value).endswith(f"1 missing: {name}")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (dict(depth_single=1), "block_2/tokens/"),
        (dict(scan=True), "blocks_"),
    ],
)
def test_what_the_reference_lacks_is_not_given_its_names(changes: dict[str, Any], named: str) -> None:
    model = MMDiT(**SMALL | changes)
    with pytest.raises(UserError) as caught:
        to_state(filled(model), sd3.rename(model))
    assert caught.value.field == "model" and caught.value.value.startswith(named)


def test_contexts_of_classes_are_not_given_its_names() -> None:
    model = MMDiT(num_classes=3, hidden_size=16, depth=1, num_heads=2)
    x, t, y = np.zeros((1, 2, 2, 3)), np.zeros(1), {"label": np.zeros(1, np.int32)}
    with pytest.raises(UserError) as caught:
        published_shapes(jax.eval_shape(model.init, jax.random.key(0), x, t, y)["params"], sd3.rename(model))
    assert (caught.value.field, caught.value.value) == ("model", "context/class_tokens")


def test_checkpoints_of_a_whole_system_give_the_network_alone() -> None:
    model = MMDiT(**SMALL)
    whole = {f"model.diffusion_model.{name}": name for name in published(model)}
    others = [
        "first_stage_model.decoder.conv_in.weight",
        "text_encoders.clip_l.transformer.text_model.embeddings.position_ids",
        "conditioner.embedders.0.weight",
        "cond_stage_model.model.weight",
        "model_sampling.sigmas",
    ]
    assert {name: sd3.tensor_name(name) for name in whole} == whole
    assert [sd3.tensor_name(name) for name in others] == [None] * len(others)
    assert [sd3.tensor_name(name) for name in published(model)] == list(published(model))  # the network by itself
