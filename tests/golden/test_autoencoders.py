"""The settings and inputs of the autoencoders' cases matter, and those that nothing here stands against are named."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

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
        ("vae_sdxl", dict(norm_num_groups=4)),
        ("vae_sdxl", dict(scaling_factor=0.2)),
        ("vae_sdxl", dict(shift_factor=0.1)),
        ("vq_model", dict(norm_num_groups=4)),
        ("taesd", dict(latent_shift=0.4)),
        ("taesd", dict(latent_magnitude=2)),
        ("patchgan", dict(disc_weight=0.6)),
    ],
)
def test_settings_that_no_shape_shows_matter(stem: str, fields: dict[str, Any]) -> None:
    error, tolerance = compare(changed(stem, **fields))
    assert error > tolerance


@pytest.mark.parametrize(
    ("stem", "name"),
    [
        ("vae_sdxl", "x"),
        ("vae_sdxl", "noise"),
        ("vq_model", "x"),
        ("taesd", "z"),
        ("lpips_alex", "b"),
        ("patchgan", "real"),
        ("patchgan", "z"),
    ],
)
def test_a_perturbed_input_fails(stem: str, name: str) -> None:
    case = load(HERE / f"{stem}.npz")
    moved = case.inputs[name].copy()
    moved.flat[:8] += 0.3
    error, tolerance = compare(dataclasses.replace(case, inputs=case.inputs | {name: moved}))
    assert error > tolerance


@pytest.mark.slow
def test_settings_that_evaluation_does_not_use_are_of_no_consequence() -> None:
    for stem in ("vae_sd", "vq_model"):
        error, tolerance = compare(changed(stem, sample_size=99, force_upcast=False, act_fn="swish"))
        assert error <= tolerance


@pytest.mark.parametrize(
    ("stem", "fields"),
    [
        ("vae_sd", dict(act_fn="gelu")),
        ("vae_sd", dict(num_vq_embeddings=3)),  # of codebooks
        ("vae_sd", dict(down_block_types=["DownEncoderBlock2D", "SkipDownBlock2D", "DownEncoderBlock2D"])),
        ("vq_model", dict(norm_type="ada_group")),
        ("vq_model", dict(lookup_from_codebook=True)),
        ("taesd", dict(upsample_fn="bilinear")),
        ("lpips_vgg", dict(spatial=True)),
        ("lpips_vgg", dict(net="squeeze")),
    ],
)
def test_settings_that_the_package_has_not_are_named(stem: str, fields: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedSource):
        compare(changed(stem, **fields))
