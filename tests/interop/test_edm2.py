"""Laws of importing and exporting EDM2 networks: nothing is lost on the way, and shapes determine the network."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import pathlib
from typing import Any

import jax
import numpy as np
import pytest

from archirf_jax.errors import UserError
from archirf_jax.interop import edm2
from archirf_jax.interop.weights import published_shapes, to_params, to_state
from archirf_jax.models.edm2_unet import PRESETS, EDM2UNet
from archirf_jax.models.uncertainty import Uncertain
from archirf_jax.processes.edm import EDM

SMALL: dict[str, Any] = dict(
    num_classes=3, model_channels=8, channel_mult=(1, 2), num_blocks=1, attention_levels=(1,), channels_per_head=8
)
VARIANTS: dict[str, tuple[dict[str, Any], int, int]] = {  # fields, image size, channels
    "plain": ({}, 8, 3),
    "no labels": (dict(class_conditional=False, num_classes=1), 8, 1),
    "three levels": (dict(channel_mult=(1, 3, 2), attention_levels=(0, 2), num_blocks=3), 12, 4),
    "attention in the middle alone": (dict(attention_levels=()), 4, 2),
    "no attention": (dict(attention_levels=(), middle_attention=False), 4, 2),
    "other widths of embeddings": (dict(channel_mult_noise=3, channel_mult_emb=5), 8, 3),
    "eleven blocks": (dict(num_blocks=11, channel_mult=(1,), attention_levels=()), 16, 3),
    "no blocks in the encoder": (dict(num_blocks=0), 8, 3),
}
CASES = sorted((pathlib.Path(__file__).parents[1] / "golden").glob("edm2_*cond.npz"))


def shapes_of(model: Uncertain, size: int, channels: int) -> Any:
    t = np.zeros(1, np.float32)
    x = np.zeros((1, size, size, channels), np.float32)
    return jax.eval_shape(model.init, jax.random.key(0), x, t, {"label": t.astype(np.int32)})["params"]


def filled(like: Any) -> Any:
    """Parameters of these shapes, every number in them unlike the others."""
    leaves, tree = jax.tree.flatten(like)
    starts = np.cumsum([0, *(leaf.size for leaf in leaves)])
    assert starts[-1] < 2**24  # the numbers are exact in float32
    arrays = [np.arange(leaf.size, dtype=np.float32).reshape(leaf.shape) for leaf in leaves]
    return tree.unflatten([np.float32(start) + array for start, array in zip(starts, arrays, strict=False)])


def stored(path: pathlib.Path) -> dict[str, tuple[int, ...]]:
    with np.load(path) as archive:
        return {name: tuple(shape) for name, shape in json.loads(str(archive["meta"]))["synthetic"].items()}


@pytest.mark.parametrize("name", VARIANTS)
def test_parameters_come_back_bit_for_bit_and_shapes_tell_the_network(name: str) -> None:
    fields, size, channels = VARIANTS[name]
    model = Uncertain(EDM2UNet(**SMALL | fields), channels=24)
    params = filled(shapes_of(model, size, channels))
    state = to_state(params, edm2.rename(model, size))
    assert sum(np.size(tensor) for tensor in state.values()) == sum(leaf.size for leaf in jax.tree.leaves(params))

    shapes = {name: np.shape(tensor) for name, tensor in state.items()}
    around = edm2.outside(shapes)
    assert around == (size, channels, 24)
    found = Uncertain(EDM2UNet(**edm2.fields(shapes, {"channels_per_head": 8})), channels=around.uncertainty_channels)
    back = to_params(state, shapes_of(found, size, channels), edm2.rename(found, size))
    assert jax.tree.structure(back) == jax.tree.structure(params)
    assert jax.tree.all(jax.tree.map(np.array_equal, back, params))


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_names_and_shapes_are_those_of_the_reference(path: pathlib.Path) -> None:
    reference = stored(path)
    fields, around = edm2.fields(reference, {"channels_per_head": 16}), edm2.outside(reference)
    model = Uncertain(EDM2UNet(**fields), channels=around.uncertainty_channels)
    like = shapes_of(model, around.image_size, around.channels)
    assert len(CASES) == 2 and published_shapes(like, edm2.rename(model, around.image_size)) == reference


def test_matrices_are_transposed_and_kernels_lie_with_the_outputs_last() -> None:
    model = Uncertain(EDM2UNet(**SMALL))
    params = filled(shapes_of(model, 8, 3))
    state, network = to_state(params, edm2.rename(model, 8)), params["network"]
    np.testing.assert_array_equal(state["unet.emb_label.weight"], network["label_embedding"]["kernel"].T)
    np.testing.assert_array_equal(state["logvar_linear.weight"], params["uncertainty"]["kernel"].T)
    convolution = state["unet.enc.4x4_down.conv_res0.weight"]
    for row, column in np.ndindex(3, 3):
        np.testing.assert_array_equal(
            convolution[:, :, row, column], network["enc_1_down"]["conv_0"]["kernel"][row, column].T
        )
    point = state["unet.dec.8x8_block1.conv_skip.weight"]
    assert point.shape == (8, 16, 1, 1)
    np.testing.assert_array_equal(point[:, :, 0, 0], network["dec_0_block1"]["skip"]["kernel"].T)
    assert state["unet.out_gain"].shape == () and state["unet.out_gain"] == network["out_gain"]


@functools.cache
def tensors(preset: str) -> dict[str, tuple[int, ...]]:
    """For images of 64 pixels, 4 channels and 1000 classes."""
    model = Uncertain(EDM2UNet(num_classes=1000, **PRESETS[preset]))
    return published_shapes(shapes_of(model, 64, 4), edm2.rename(model, 64))


def published_tensors(name: str) -> dict[str, tuple[int, ...]]:
    known = edm2.PUBLISHED[name]
    assert (known["image_size"], known["num_classes"]) == (64, 1000)
    shapes, channels = dict(tensors(known["preset"])), known["channels"]
    first, last = "unet.enc.64x64_conv.weight", "unet.out_conv.weight"
    shapes[first] = (shapes[first][0], channels + 1, *shapes[first][2:])
    return shapes | {last: (channels, *shapes[last][1:])}


def quick(*names: str) -> Any:
    """These as parameters, of which the quick tests trace the smallest and one of another task."""
    traced = ("XS", "S", "edm2-img512-xs", "edm2-img64-s")
    return [name if name in traced else pytest.param(name, marks=pytest.mark.slow) for name in names]


# Karras et al. 2024, Table 2.
MILLIONS = {"XS": 125, "S": 280, "M": 498, "L": 777, "XL": 1119, "XXL": 1523}


@pytest.mark.parametrize("size", quick(*MILLIONS))
def test_the_presets_have_the_published_numbers_of_parameters(size: str) -> None:
    assert round(sum(map(math.prod, tensors(size).values())) / 1e6) == MILLIONS[size]


@pytest.mark.parametrize("name", quick("edm2-img512-xs", "edm2-img512-xxl", "edm2-img64-s"))
def test_published_networks_are_known_by_their_shapes(name: str) -> None:
    shapes = published_tensors(name)
    assert edm2.published(shapes) == name
    found = EDM2UNet(**edm2.fields(shapes, {}))
    assert found == EDM2UNet(num_classes=1000, **PRESETS[edm2.PUBLISHED[name]["preset"]])
    assert edm2.published(shapes | {"unet.emb_label.weight": (1, 9)}) is None


def test_the_processes_of_published_networks_can_be_built() -> None:
    assert len(edm2.PUBLISHED) == 10
    for known in edm2.PUBLISHED.values():
        assert EDM(**known["process"]).sigma_data == 0.5


def test_hints_fill_in_what_shapes_leave_open() -> None:
    shapes = stored(CASES[1])
    plain = edm2.fields(shapes, {"channels_per_head": 16, "res_balance": None, "clip_act": 0})
    assert EDM2UNet(**plain) == EDM2UNet(**plain | dict(res_balance=0.3, clip_act=256.0))
    hinted = edm2.fields(shapes, {"channels_per_head": 16, "res_balance": 0.4, "num_classes": 7, "num_heads": 2})
    assert plain["num_classes"] == 1 and hinted == plain | {"res_balance": 0.4, "num_classes": 7}
    assert not set(hinted) - {field.name for field in dataclasses.fields(EDM2UNet)}


def test_heads_that_shapes_leave_open_are_asked_for() -> None:
    for path, channels in zip(CASES, (64, 32), strict=True):
        with pytest.raises(UserError) as caught:
            edm2.fields(stored(path), {})
        assert caught.value.field == "model.channels_per_head" and f" {channels} channels" in str(caught.value)
    alone = {name: shape for name, shape in stored(CASES[1]).items() if "attn" not in name}
    assert edm2.fields(alone, {})["attention_levels"] == ()


def test_tensors_of_something_else_are_refused_by_name() -> None:
    shapes = stored(CASES[0])
    with pytest.raises(UserError) as caught:
        edm2.fields({"x_embedder.proj.weight": (8, 3, 2, 2)}, {})
    assert caught.value.field == "checkpoint"
    for name in ("unet.emb_noise.weight", "unet.out_conv.weight", "logvar_linear.weight"):
        rest = {other: shape for other, shape in shapes.items() if other != name}
        with pytest.raises(UserError) as caught:
            edm2.published(rest)
        assert caught.value.field == "checkpoint" and name in str(caught.value)
