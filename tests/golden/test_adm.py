"""The settings of the ADM cases matter, and those that nothing here stands against are named."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import numpy as np
import pytest

from tests.golden.case import Case, UnsupportedSource
from tests.golden.cases import compare, load

HERE = pathlib.Path(__file__).parent


def changed(stem: str, **fields: Any) -> Case:
    """A stored case with some of its settings changed."""
    case = load(HERE / f"{stem}.npz")
    return dataclasses.replace(case, hyperparameters=case.hyperparameters | fields)


@pytest.mark.parametrize(
    ("stem", "fields"),
    [
        ("adm_class_cond", dict(use_new_attention_order=True)),
        ("adm_uncond_simple", dict(num_heads_upsample=1)),
        ("adm_classifier", dict(num_head_channels=32)),
    ],
)
def test_settings_that_no_shape_shows_matter(stem: str, fields: dict[str, Any]) -> None:
    error, tolerance = compare(changed(stem, **fields))
    assert error > tolerance


@pytest.mark.parametrize("what", ["x", "t", "y"])
def test_a_perturbed_input_fails(what: str) -> None:
    case = load(HERE / "adm_classifier.npz")
    moved = case.inputs[what].copy()
    moved.flat[0] += 1
    error, tolerance = compare(dataclasses.replace(case, inputs=case.inputs | {what: moved}))
    assert error > tolerance


def test_settings_that_evaluation_does_not_use_are_of_no_consequence() -> None:
    """Dropout, gradient checkpoints, the size of the images, and factors of attention that no level has."""
    fields = dict(dropout=0.5, use_checkpoint=True, image_size=64, attention_resolutions=[2, 4, 32])
    error, tolerance = compare(changed("adm_class_cond", **fields))
    assert error <= tolerance


@pytest.mark.parametrize(
    ("stem", "fields"),
    [
        ("adm_class_cond", dict(dims=3)),
        ("adm_class_cond", dict(use_fp16=True)),
        ("adm_class_cond", dict(pool="attention")),  # of the classifier
        ("adm_classifier", dict(num_classes=10)),  # of the U-Net
        ("adm_classifier", dict(pool="max")),
        ("adm_classifier", dict(model_channels=None)),
    ],
)
def test_settings_that_the_package_has_not_are_named(stem: str, fields: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedSource, match=next(iter(fields))):
        compare(changed(stem, **fields))


def test_an_upsampler_is_given_a_small_image() -> None:
    """A case of SuperResModel that ignores its small image is UNetModel's: the new columns of its kernel are zeros."""
    case = load(HERE / "adm_class_cond.npz")
    name = "input_blocks.0.0.weight"
    wide = np.concatenate([case.params[name], np.zeros_like(case.params[name])], axis=1)
    upsampler = dataclasses.replace(
        case,
        source=case.source.replace("UNetModel", "SuperResModel"),
        inputs=case.inputs | {"low_res": case.inputs["x"][:, :, ::4, ::4]},
        params=case.params | {name: wide},
    )
    error, tolerance = compare(upsampler)
    assert error <= tolerance
    shown = dataclasses.replace(upsampler, params=case.params | {name: wide[:, ::-1]})
    assert compare(shown)[0] > tolerance
