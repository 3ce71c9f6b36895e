"""Laws of importing autoencoders and LPIPS: fields from shapes, names both ways bit for bit, other parts' tensors."""

from __future__ import annotations

import logging
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from archirf_jax.errors import UserError
from archirf_jax.interop import sources
from archirf_jax.interop.autoencoder_names import COMPVIS, DIFFUSERS, rename_autoencoder
from archirf_jax.interop.weights import published_shapes, to_state
from archirf_jax.models import autoencoder_kl, autoencoder_tiny, vq_model
from archirf_jax.models.autoencoder_kl import AutoencoderKL
from archirf_jax.models.autoencoder_tiny import AutoencoderTiny
from archirf_jax.models.lpips import LPIPS
from archirf_jax.models.vq_model import VQModel
from archirf_jax.tasks.building import make_model, make_task
from archirf_jax.tasks.published import export, load
from tests.golden.cases import load as load_case

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
# Golden case -> its kind of weights, and what its shapes do not show.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "vae_sd": ("vae", dict(norm_num_groups=16)),
    "vae_sdxl": ("vae", dict(norm_num_groups=8, scaling_factor=0.13025)),
    "vae_attention": ("vae", dict(norm_num_groups=4)),
    "vq_model": ("vq", dict(norm_num_groups=8)),
    "vq_spatial": ("vq", {}),
    "taesd": ("taesd", {}),
    "lpips_vgg": ("lpips", {}),
    "lpips_alex": ("lpips", {}),
}
every_case = pytest.mark.parametrize("name", CASES)
KL: dict[str, Any] = dict(block_out_channels=(8, 12, 16), norm_num_groups=4, layers_per_block=2, latent_channels=2)
VARIANTS: dict[str, Any] = {
    "plain": AutoencoderKL(**KL),
    "bare": AutoencoderKL(**KL | dict(block_out_channels=(8,), use_quant_conv=False, mid_block_add_attention=False)),
    "without the second": AutoencoderKL(**KL, use_post_quant_conv=False, attention_levels=(0, 2), out_channels=1),
    "many levels": AutoencoderKL(**KL | dict(block_out_channels=(4,) * 11, layers_per_block=1)),
    "many layers": AutoencoderKL(**KL | dict(block_out_channels=(4,), layers_per_block=11)),
    "codes": VQModel(**KL, num_vq_embeddings=7, vq_embed_dim=5),
    "codes as latents": VQModel(**KL, num_vq_embeddings=7, attention_levels=(1,)),
    "spatial": VQModel(**KL | dict(block_out_channels=(32, 64)), norm_type="spatial", attention_levels=(1,)),
}
KINDS = {AutoencoderKL: "vae", VQModel: "vq", AutoencoderTiny: "taesd"}


def tensors(name: str) -> dict[str, np.ndarray]:
    return dict(load_case(GOLDEN / f"{name}.npz").params)


def shapes_of(model: Any) -> Any:
    side = model.factor * 2
    images = jnp.zeros((1, side, side, model.out_channels))
    return jax.eval_shape(model.init, jax.random.key(0), images)["params"]


def filled(like: Any) -> Any:
    random = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: random.normal(size=leaf.shape).astype(np.float32), like)


def described(source: str, shapes: Any, **hints: Any) -> Any:
    return ml_collections.ConfigDict(sources.configuration(source, shapes, hints)).lock()


def model_of(config: Any) -> Any:
    return make_model(config).clone(dtype=jnp.float32)


def exported(config: Any, params: Any) -> dict[str, np.ndarray]:
    config = ml_collections.ConfigDict(config)
    return export(config, make_task(config), params)


@every_case
def test_what_is_imported_is_exported_bit_for_bit_and_under_its_names(name: str) -> None:
    source, hints = CASES[name]
    given = tensors(name)
    config, params = load(source, given, hints)
    assert list(params) == ["model"]
    back = exported(config, params)
    assert back.keys() == given.keys()
    assert all(
        back[key].shape == value.shape and back[key].tobytes() == value.tobytes() for key, value in given.items()
    )


@pytest.mark.parametrize(("field", "value"), [("patch_size", 2), ("encoder_layers", 3)])
def test_what_no_published_autoencoder_has_is_not_exported(field: str, value: int) -> None:
    config, params = load("vae", tensors("vae_sd"), CASES["vae_sd"][1])
    config["model"][field] = value
    with pytest.raises(UserError) as caught:
        exported(config, params)
    assert caught.value.field == f"model.{field}"


SPELLED = [(name, DIFFUSERS) for name in ("plain", "without the second", "many levels", "codes", "spatial")]
SPELLED += [(name, COMPVIS) for name in ("plain", "bare", "many layers", "codes as latents")]


@pytest.mark.parametrize(("name", "spelling"), SPELLED)
def test_every_field_that_shapes_show_is_known_in_both_spellings(name: str, spelling: Any) -> None:
    model = VARIANTS[name]
    shapes = published_shapes(shapes_of(model), rename_autoencoder(model, spelling))
    source = KINDS[type(model)] + "-compvis" * (spelling is COMPVIS)
    found = model_of(described(source, shapes, norm_num_groups=4, scaling_factor=1.0))
    same = dict(commitment_weight=1.0, codebook_weight=0.25) if isinstance(model, VQModel) else {}
    assert found == model.clone(**same)


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux"])
def test_published_autoencoders_are_known_by_shapes_and_their_factors(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = AutoencoderKL.preset(name)
    shapes = published_shapes(shapes_of(model), rename_autoencoder(model))
    given = {key: value for key, value in autoencoder_kl.PRESETS[name].items() if "factor" in key}
    assert model_of(described("vae", shapes, **given)) == model
    assert not caplog.records
    with caplog.at_level(logging.INFO, "absl"):
        found = model_of(described("vae", shapes))
    # Those of the same shapes are told apart by a flag alone, and what is assumed is logged.
    assert found == AutoencoderKL.preset({"sdxl": "sd", "flux": "sd3"}.get(name, name))
    assert "scaling_factor" in caplog.text


@pytest.mark.parametrize("name", ["f4", "f8", "movq"])
def test_published_codebooks_are_known_by_shapes(name: str) -> None:
    model = VQModel.preset(name, commitment_weight=1.0, codebook_weight=0.25)
    assert model_of(described("vq", published_shapes(shapes_of(model), rename_autoencoder(model)))) == model
    assert name in vq_model.PRESETS


@pytest.mark.parametrize(
    "fields",
    [
        *autoencoder_tiny.PRESETS.values(),
        dict(decoder_width=5, num_encoder_blocks=(2, 0, 1), num_decoder_blocks=(0, 1, 3), out_channels=1),
        dict(num_encoder_blocks=(2,), num_decoder_blocks=(1,), latent_channels=2),
    ],
)
def test_tiny_autoencoders_are_known_by_shapes_and_come_back(fields: dict[str, Any]) -> None:
    model = AutoencoderTiny(**dict(width=6) | fields)
    params = filled(shapes_of(model))
    state = to_state(params, sources.rename("taesd", model, 64))
    config, found = load("taesd", state, {})
    assert model_of(ml_collections.ConfigDict(config)) == model
    jax.tree.map(np.testing.assert_array_equal, found["model"], params)


def test_both_spellings_hold_the_same_numbers() -> None:
    """Level 0 of CompVis' decoder is the finest, of diffusers' the coarsest; attention's layers are convolutions."""
    model = VARIANTS["without the second"]
    params = filled(shapes_of(model))
    ours, theirs = (to_state(params, rename_autoencoder(model, spelling)) for spelling in (DIFFUSERS, COMPVIS))
    for first, second in (
        ("decoder.up_blocks.0.resnets.2.conv1.weight", "decoder.up.2.block.2.conv1.weight"),
        ("decoder.up_blocks.2.attentions.1.group_norm.bias", "decoder.up.0.attn.1.norm.bias"),
        ("decoder.up_blocks.1.upsamplers.0.conv.bias", "decoder.up.1.upsample.conv.bias"),
        ("encoder.down_blocks.1.downsamplers.0.conv.weight", "encoder.down.1.downsample.conv.weight"),
        ("encoder.mid_block.resnets.1.norm2.bias", "encoder.mid.block_2.norm2.bias"),
        ("encoder.conv_norm_out.weight", "encoder.norm_out.weight"),
    ):
        np.testing.assert_array_equal(ours.pop(first), theirs.pop(second))
    query = theirs["encoder.mid.attn_1.q.weight"]
    np.testing.assert_array_equal(query[..., 0, 0], ours["encoder.mid_block.attentions.0.to_q.weight"])
    assert query.shape[2:] == (1, 1) and len(ours) == len(theirs)


def test_of_a_whole_system_the_autoencoder_is_imported_and_exported_under_its_prefix() -> None:
    model = VARIANTS["plain"]
    own = to_state(filled(shapes_of(model)), rename_autoencoder(model, COMPVIS))
    whole = {f"first_stage_model.{name}": value for name, value in own.items()}
    others = [
        "model.diffusion_model.out.2.bias",
        "cond_stage_model.x.weight",
        "betas",
        "model_ema.decay",
        "loss.logvar",
    ]
    config, params = load("vae-compvis", whole | {name: np.zeros(3) for name in others}, dict(norm_num_groups=4))
    back = exported(config, params)
    assert back.keys() == whole.keys() and all(back[name].tobytes() == whole[name].tobytes() for name in whole)


def test_names_of_attention_in_older_files_are_read_and_kept() -> None:
    former = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    given = {}
    for name, value in tensors("vae_sd").items():
        for new, old in former.items():
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{old}.")
        given[name] = value
    assert sum("proj_attn" in name for name in given) == 4
    config, params = load("vae", given, dict(norm_num_groups=16))
    back = exported(config, params)
    assert back.keys() == given.keys() and all(back[name].tobytes() == given[name].tobytes() for name in given)


def test_torchvisions_features_and_the_packages_heads_are_lpips() -> None:
    given = tensors("lpips_alex")
    backbone = {f"features.{name.split('.', 2)[2]}": value for name, value in given.items() if name.startswith("net.")}
    heads = {name: value for name, value in given.items() if name.startswith("lin")}
    unused = {"classifier.1.weight": np.zeros((2, 2)), **{f"lins.{name[3:]}": value for name, value in heads.items()}}
    scaling = {
        "scaling_layer.shift": np.asarray([-0.030, -0.088, -0.188], np.float32).reshape(1, 3, 1, 1),
        "scaling_layer.scale": np.asarray([0.458, 0.448, 0.450], np.float32).reshape(1, 3, 1, 1),
    }
    _, expected = load("lpips", given, {})
    for more in ({}, unused | scaling):
        config, params = load("lpips", backbone | heads | more, {})
        jax.tree.map(np.testing.assert_array_equal, params, expected)
        back = exported(config, params)
        assert back.keys() == (backbone | heads | (scaling if more else {})).keys()
    wrong = {"scaling_layer.scale": scaling["scaling_layer.scale"] + 1}
    for state in (backbone, heads, backbone | heads | wrong):
        with pytest.raises(UserError) as caught:
            load("lpips", state, {})
        assert caught.value.field == "checkpoint"


@pytest.mark.parametrize("source", sources.SOURCES)
@every_case
def test_a_kind_takes_its_own_tensors_and_refuses_those_of_another(name: str, source: str) -> None:
    own, hints = CASES[name]
    kept = {sources.SOURCES[source].tensor_name(key): value.shape for key, value in tensors(name).items()}
    shapes = {key: shape for key, shape in kept.items() if key}
    more = dict(num_heads=2, channels_per_head=16, num_res_blocks=1, image_size=16, num_classes=3)
    if source == own:
        config = described(source, shapes, **hints | more)
        assert config.task == ("network" if own == "lpips" else "autoencoder") and config.data.channels in (1, 3)
    else:
        with pytest.raises(UserError) as caught:
            described(source, shapes, **hints | more)
        assert caught.value.field == "checkpoint" and "\n" not in str(caught.value)


@every_case
def test_missing_needless_and_misshapen_tensors_are_named(name: str) -> None:
    source, hints = CASES[name]
    given = tensors(name)
    absent, misshapen = [key for key in given if key.endswith("bias") and "conv_out" not in key][-2:]
    shape = (given[misshapen].shape[0] + 1,)
    state = {key: value for key, value in given.items() if key != absent}
    with pytest.raises(UserError) as caught:
        load(source, state | {misshapen: np.zeros(shape), "other.weight": np.zeros(2)}, hints)
    line, inner = str(caught.value), sources.SOURCES[source].tensor_name
    assert caught.value.field == "checkpoint" and "\n" not in line
    assert all(str(part) in line for part in (inner(absent), inner(misshapen), shape, "other.weight"))


def test_of_lpips_a_fresh_network_is_exported_under_torchvisions_names() -> None:
    like = jax.eval_shape(LPIPS("vgg").init, jax.random.key(0), *[jnp.zeros((1, 16, 16, 3))] * 2)["params"]
    names = published_shapes(like, sources.rename("lpips", LPIPS("vgg"), 64))
    assert names["features.28.weight"] == (512, 512, 3, 3) and names["lin4.model.1.weight"] == (1, 512, 1, 1)
