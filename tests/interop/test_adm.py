"""Laws of published ADM weights: shapes determine the network, tensors come back bit for bit, the rest is asked for."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import numpy as np
import pytest

from archirf_jax.errors import UserError
from archirf_jax.interop import adm, weights
from archirf_jax.models import adm_classifier, adm_unet
from archirf_jax.models.adm_classifier import ADMClassifier
from archirf_jax.models.adm_unet import ADMUNet
from archirf_jax.processes.ddpm import DDPM

PRESETS = adm_unet.PRESETS
UNET: dict[str, Any] = dict(
    num_classes=3, model_channels=32, num_res_blocks=1, channel_mult=(1, 2), attention_downsamples=(2,), num_heads=2
)
UNETS: list[dict[str, Any]] = [
    {},
    dict(num_res_blocks=2, channel_mult=(1, 1, 1), attention_downsamples=(), learn_sigma=True),
    dict(model_channels=64, channel_mult=(0.5, 1.5, 2), attention_downsamples=(1, 4), num_head_channels=16),
    dict(resblock_updown=False, scale_shift_norm=False, num_res_blocks=3, attention_order="new"),
    dict(resblock_updown=False, conv_resample=False, channel_mult=(2, 1, 2), attention_downsamples=(1, 2, 4)),
    dict(class_conditional=False, num_classes=1, out_channels=5, channel_mult=(1,), attention_downsamples=()),
    dict(super_resolution=True, learn_sigma=True, num_heads_upsample=4),
    dict(super_resolution=True, class_conditional=False, num_classes=1),
]
CLASSIFIER: dict[str, Any] = UNET | dict(image_size=8, num_head_channels=None)
CLASSIFIERS: list[dict[str, Any]] = [
    dict(pool="attention"),
    dict(pool="attention", image_size=16, channel_mult=(1, 1, 2), attention_downsamples=(1, 4), num_res_blocks=2),
    dict(pool="adaptive", resblock_updown=False, num_head_channels=16, num_heads=4),
    dict(pool="spatial", resblock_updown=False, conv_resample=False, scale_shift_norm=False),
    dict(pool="spatial_v2", num_res_blocks=4, attention_downsamples=(1,)),
]
HINTS = ("num_heads", "num_head_channels", "num_heads_upsample", "attention_order", "image_size")


def shapes_of(model: ADMUNet | ADMClassifier, channels: int = 3) -> Any:
    """The parameters of a network for images of `channels`."""
    size = getattr(model, "image_size", 64)
    images, numbers = np.zeros((1, size, size, channels), np.float32), np.zeros(1, np.float32)
    label = np.zeros(1, np.int32)
    if isinstance(model, ADMClassifier):
        return jax.eval_shape(model.init, jax.random.key(0), images, numbers)["params"]
    condition = {"label": label, "low_res": images}
    return jax.eval_shape(model.init, jax.random.key(0), images, numbers, condition)["params"]


def renamed(model: ADMUNet | ADMClassifier) -> weights.Rename:
    return adm.rename_classifier(model) if isinstance(model, ADMClassifier) else adm.rename_unet(model)


@functools.cache
def published(model: ADMUNet | ADMClassifier, channels: int = 3) -> dict[str, tuple[int, ...]]:
    return weights.published_shapes(shapes_of(model, channels), renamed(model))


def random_like(tree: Any) -> Any:
    random = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: random.normal(size=leaf.shape).astype(np.float32), tree)


def assert_round_trip(model: ADMUNet | ADMClassifier, channels: int) -> None:
    """Parameters -> published tensors -> parameters, all of them, bit for bit."""
    like = shapes_of(model, channels)
    params = random_like(like)
    state = weights.to_state(params, renamed(model))
    assert len(state) == len(jax.tree.leaves(params))
    back = weights.to_params(state, like, renamed(model))
    assert jax.tree.structure(back) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, back, params)


@pytest.mark.parametrize(("number", "fields"), list(enumerate(UNETS)))
def test_shapes_and_heads_tell_a_unet(number: int, fields: dict[str, Any]) -> None:
    channels = 1 + 2 * (number % 2)
    model = ADMUNet(**UNET | fields)
    hints = {name: getattr(model, name) for name in HINTS if hasattr(model, name)}
    found = adm.unet_fields(published(model, channels), hints, model.super_resolution)
    assert ADMUNet(**found) == model
    assert adm.image_channels(published(model, channels), model.super_resolution) == channels


@pytest.mark.parametrize("fields", CLASSIFIERS)
def test_shapes_and_heads_tell_a_classifier(fields: dict[str, Any]) -> None:
    model = ADMClassifier(**CLASSIFIER | fields)
    hints = {name: getattr(model, name) for name in HINTS if hasattr(model, name)}
    if model.pool == "attention":
        del hints["image_size"]  # its positions determine it
    assert ADMClassifier(**adm.classifier_fields(published(model), hints)) == model


@pytest.mark.parametrize("fields", UNETS)
def test_parameters_of_a_unet_come_back_bit_for_bit(fields: dict[str, Any]) -> None:
    assert_round_trip(ADMUNet(**UNET | fields), channels=3)


@pytest.mark.parametrize("fields", CLASSIFIERS)
def test_parameters_of_a_classifier_come_back_bit_for_bit(fields: dict[str, Any]) -> None:
    assert_round_trip(ADMClassifier(**CLASSIFIER | fields), channels=1)


def unet(name: str) -> ADMUNet:
    return ADMUNet(num_classes=1 if name in ("imagenet256-unconditional", "lsun256") else 1000, **PRESETS[name])


def published_unet(name: str) -> dict[str, tuple[int, ...]]:
    """Its tensors, which dropout does not change."""
    return dict(published(unet(name).clone(dropout=0.0)))


def quick(*names: str) -> Any:
    """These as parameters, of which the quick tests trace some of every kind: each takes a second."""
    traced = ("imagenet64", "upsample64-256")
    return [name if name in traced else pytest.param(name, marks=pytest.mark.slow) for name in names]


# Dhariwal & Nichol 2021, tables 4, 11 and 12.
MILLIONS = {
    "imagenet64": 296,
    "imagenet128": 422,
    "imagenet256": 554,
    "imagenet256-unconditional": 553,
    "imagenet512": 559,
    "lsun256": 553,
    "upsample64-256": 312,
    "upsample128-512": 309,
}


@pytest.mark.parametrize("name", quick(*MILLIONS))
def test_published_unets_have_the_published_numbers_of_parameters(name: str) -> None:
    assert round(sum(map(math.prod, published_unet(name).values())) / 1e6) == MILLIONS[name]


@pytest.mark.parametrize("name", quick(*adm.PUBLISHED))
def test_shapes_alone_tell_a_published_unet(name: str) -> None:
    model, shapes = unet(name), published_unet(name)
    # LSUN's networks differ from the unconditional one of ImageNet by dropout alone, which no tensor shows.
    known = name if name != "lsun256" else "imagenet256-unconditional"
    assert adm.published_unet(shapes) == known
    found = ADMUNet(**adm.unet_fields(shapes, {}, model.super_resolution))
    assert found == model.clone(dropout=PRESETS[known].get("dropout", 0.0))
    hinted = adm.unet_fields(shapes, dict(num_heads=2, attention_order="new"), model.super_resolution)
    assert hinted["num_heads"] == 2 and not hinted["num_head_channels"] and hinted["attention_order"] == "new"
    assert adm.unet_fields(shapes, dict(num_head_channels=8), model.super_resolution)["num_head_channels"] == 8


@pytest.mark.parametrize("name", quick(*adm.PUBLISHED_CLASSIFIERS))
def test_shapes_alone_tell_a_published_classifier(name: str) -> None:
    model = ADMClassifier(num_classes=1000, **adm_classifier.PRESETS[name])
    assert adm.published_classifier(published(model)) == name
    assert ADMClassifier(**adm.classifier_fields(published(model), {})) == model
    assert adm.PUBLISHED_CLASSIFIERS[name]["image_size"] == model.image_size and name == f"imagenet{model.image_size}"
    # It pools maps of 8x8.
    assert published(model)["out.2.positional_embedding"] == (512, 8 * 8 + 1)
    assert published(model)["out.2.c_proj.weight"] == (1000, 512, 1)


def test_what_surrounds_the_published_networks_fits_them() -> None:
    """Attention runs at 32, 16 and 8 pixels (the larger upsampler's at 32 and 16), and noise is cosine at 64 alone."""
    assert set(adm.PUBLISHED) == set(PRESETS) - {"tiny"}
    for name, around in adm.PUBLISHED.items():
        process = DDPM(**around["process"])
        assert process.steps == 1000 and process.variance == "learned_range" and PRESETS[name]["learn_sigma"]
        assert (process.schedule == "cosine") == (around["image_size"] == 64)
        sizes = [around["image_size"] // factor for factor in PRESETS[name]["attention_downsamples"]]
        assert sizes == [32, 16, 8][: len(sizes)]
        assert ("low_res_size" in around) == PRESETS[name].get("super_resolution", False)
        assert name.endswith(str(around["image_size"])) or name == "imagenet256-unconditional"


def test_names_are_the_published_ones() -> None:
    names = published(ADMUNet(**UNET | dict(resblock_updown=False)))
    assert names["input_blocks.2.0.op.weight"] == (32, 32, 3, 3)
    assert names["input_blocks.3.1.qkv.weight"] == (192, 64, 1)
    assert names["output_blocks.1.2.conv.weight"] == (64, 64, 3, 3)
    assert names["label_emb.weight"] == (3, 128)
    names = published(ADMClassifier(**CLASSIFIER, pool="attention"))
    assert names["out.2.positional_embedding"] == (64, 17) and names["out.2.c_proj.weight"] == (3, 64, 1)
    assert published(ADMClassifier(**CLASSIFIER, pool="adaptive"))["out.3.weight"] == (3, 64, 1, 1)


def test_heads_that_shapes_leave_open_are_asked_for() -> None:
    shapes = published(ADMUNet(**UNET))
    for hints in ({}, dict(num_heads=0, num_head_channels=None), dict(attention_order="new")):
        with pytest.raises(UserError) as caught:
            adm.unet_fields(shapes, hints)
        assert caught.value.field == "model.num_heads"
    with pytest.raises(UserError) as caught:
        adm.classifier_fields(published(ADMClassifier(**CLASSIFIER)), {})
    assert caught.value.field == "model.num_heads"


def test_levels_that_widths_do_not_separate_are_asked_for() -> None:
    """Five equal blocks: two and two with one between, one, one and one with two between, or one level of five."""
    model = ADMClassifier(**CLASSIFIER | dict(num_res_blocks=2, channel_mult=(1, 1), attention_downsamples=()))
    shapes, hints = published(model), dict(num_heads=2)
    with pytest.raises(UserError) as caught:
        adm.classifier_fields(shapes, hints)
    assert caught.value.field == "model.num_res_blocks" and " 1, 2 or 5 " in str(caught.value)
    assert adm.classifier_fields(shapes, hints | dict(num_res_blocks=2))["channel_mult"] == (1, 1)


def test_tensors_of_another_network_are_named() -> None:
    hints = dict(num_heads=2)
    unet, classifier = published(ADMUNet(**UNET)), published(ADMClassifier(**CLASSIFIER))
    upsampler = published_unet("upsample64-256")
    for call, named in (
        (lambda: adm.unet_fields(classifier, hints), "output_blocks"),
        (lambda: adm.classifier_fields(unet, hints), "output_blocks"),
        (lambda: adm.unet_fields({}, hints), "output_blocks"),
        (lambda: adm.classifier_fields({}, hints), "input_blocks"),
        (lambda: adm.unet_fields(upsampler, hints), "upsample64-256"),
        (lambda: adm.unet_fields(unet, hints, super_resolution=True), "3 channels"),
    ):
        with pytest.raises(UserError) as caught:
            call()
        assert caught.value.field == "checkpoint" and named in str(caught.value)


@pytest.mark.parametrize("name", ["time_embed.0.weight", "out.2.weight", "input_blocks.3.0.in_layers.2.weight"])
def test_a_tensor_that_the_fields_need_is_named_where_it_is_missing(name: str) -> None:
    shapes = dict(published(ADMUNet(**UNET)))
    del shapes[name]
    with pytest.raises(UserError) as caught:
        adm.unet_fields(shapes, dict(num_heads=2))
    assert caught.value.field == "checkpoint" and name in str(caught.value)
