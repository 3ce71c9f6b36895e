"""Laws of Stable Diffusion 3's transformer in diffusers' names: those of its files, and the way there and back."""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest

from archirf_jax.errors import UserError
from archirf_jax.interop import sd3, sd3_diffusers, sources
from archirf_jax.interop.weights import published_shapes, to_params, to_state
from archirf_jax.models.mmdit import MMDiT
from archirf_jax.tasks.published import load
from tests.golden import cases
from tests.interop.test_sd3 import SMALL, filled, shapes_of

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "normed": dict(qk_norm="rms"),
    "dual": dict(dual_layers=(0, 1), depth=3, qk_norm="rms"),
    "dual without norms": dict(dual_layers=(1,), depth=3),
    "many": dict(depth=11, hidden_size=8, num_heads=1, mlp_ratio=2.5),
}
every_variant = pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
PLACE = pathlib.Path(cases.__file__).parent
OF_CASES = dict(
    num_classes=1, context="text", context_width=40, pooled_width=24, hidden_size=16, depth=3, num_heads=2
) | dict(position_size=6)


@pytest.mark.parametrize(
    ("name", "fields"), [("pipeline_sd3", {}), ("pipeline_sd35", dict(qk_norm="rms", dual_layers=(0,)))]
)
def test_names_and_shapes_are_those_of_the_files_and_decide_the_network(name: str, fields: dict[str, Any]) -> None:
    params = cases.load(PLACE / f"{name}.npz").params
    theirs = {key.partition("/")[2]: value.shape for key, value in params.items() if key.startswith("transformer/")}
    model = MMDiT(**OF_CASES | fields)
    assert published_shapes(shapes_of(model, channels=16), sd3_diffusers.rename(model)) == theirs
    assert MMDiT(**sd3.fields(sd3_diffusers.as_reference(theirs), dict(num_heads=2))) == model


@every_variant
def test_tensors_come_back_bit_for_bit_and_are_the_references_under_other_names(changes: dict[str, Any]) -> None:
    model = MMDiT(**SMALL | changes)
    params, rename = filled(model), sd3_diffusers.rename(model)
    state = to_state(params, rename)
    back = to_params(state, shapes_of(model), rename)
    assert jax.tree.all(jax.tree.map(np.array_equal, back, params))
    assert sd3_diffusers.as_reference({name: value.shape for name, value in state.items()}) == published_shapes(
        shapes_of(model), sd3.rename(model)
    )
    reference = to_state(params, sd3.rename(model))
    block = "joint_blocks.1.x_block.attn.qkv.bias"
    each = [state[f"transformer_blocks.1.attn.to_{part}.bias"] for part in "qkv"]
    np.testing.assert_array_equal(np.concatenate(each), reference[block])


def test_norms_without_a_gate_scale_before_they_shift() -> None:
    model = MMDiT(**SMALL)
    state, reference = (to_state(filled(model), of.rename(model)) for of in (sd3_diffusers, sd3))
    for ours, theirs in (
        ("norm_out.linear", "final_layer.adaLN_modulation.1"),
        ("transformer_blocks.1.norm1_context.linear", "joint_blocks.1.context_block.adaLN_modulation.1"),
    ):
        for kind in ("weight", "bias"):
            shift, scale = np.split(reference[f"{theirs}.{kind}"], 2)
            np.testing.assert_array_equal(state[f"{ours}.{kind}"], np.concatenate([scale, shift]))
    gated = "transformer_blocks.0.norm1_context.linear.weight", "joint_blocks.0.context_block.adaLN_modulation.1.weight"
    np.testing.assert_array_equal(state[gated[0]], reference[gated[1]])


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_a_network_alone_is_known_by_its_names_and_keeps_its_type(dtype: Any) -> None:
    model = MMDiT(**SMALL)
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), filled(model))
    found = {}
    for kind, of in (("sd3-diffusers", sd3_diffusers), ("sd3", sd3)):
        config, loaded = load("sd3", to_state(params, of.rename(model)), dict(num_heads=2))
        assert config["imported"]["source"] == kind and config["process"]["name"] == "rectified_flow"
        assert {leaf.dtype for leaf in jax.tree.leaves(loaded)} == {np.dtype(dtype)}
        found[kind] = loaded
    jax.tree.map(np.testing.assert_array_equal, *found.values())
    assert sources.spelling("sd3", ["module.pos_embed.proj.weight"]) == "sd3-diffusers"


def test_tensors_that_are_absent_or_too_many_are_named() -> None:
    model = MMDiT(**SMALL)
    state = to_state(filled(model), sd3_diffusers.rename(model))
    for name in ("transformer_blocks.1.attn.add_k_proj.bias", "pos_embed.pos_embed", "norm_out.linear.weight"):
        with pytest.raises(UserError) as caught:
            load("sd3", {other: state[other] for other in state if other != name}, dict(num_heads=2))
        assert caught.value.field == "checkpoint" and name in str(caught.value)
    with pytest.raises(UserError, match=r"image_proj\.weight"):
        load("sd3", state | {"image_proj.weight": np.zeros((2, 2), np.float32)}, dict(num_heads=2))
