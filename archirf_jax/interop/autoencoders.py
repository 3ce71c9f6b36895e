"""diffusers' and CompVis' autoencoders: the configurations of runs that their tensors make."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from absl import logging

from archirf_jax.errors import UserError
from archirf_jax.interop.autoencoder_names import COMPVIS, DIFFUSERS, Spelling
from archirf_jax.interop.imported_data import data_group
from archirf_jax.interop.lpips_names import lpips_fields
from archirf_jax.interop.weights import Shapes, count

Fields = dict[str, Any]
Describe = Callable[[Shapes, Mapping[str, Any]], dict[str, Fields]]
GROUPS = 32  # of the norms of all published networks
IMAGE_SIZE = 256  # these networks take images of any size
# Scaling and shift by the latents' channels; those of SDXL and Flux have the same shapes as those given here.
KNOWN = {4: dict(scaling_factor=0.18215), 16: dict(scaling_factor=1.5305, shift_factor=0.0609)}
OTHERS = {4: "SDXL's is 0.13025", 16: "Flux's are 0.3611 and 0.1159"}
# What attention was called in diffusers' files of 2022.
FORMER = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
# Other parts of a whole system's file; names without a dot are its tables of noise.
ELSEWHERE = re.compile(r"(model|model_ema|cond_stage_model|conditioner|text_encoders|model_sampling|loss)\.|[^.]+$")


def describe(name: str, fields: Callable[[Shapes, Mapping[str, Any]], Fields], size: int = IMAGE_SIZE) -> Describe:
    """(shapes, hints) -> the groups of a configuration whose network, `name`, has these fields."""

    def groups(shapes: Shapes, hints: Mapping[str, Any]) -> dict[str, Fields]:
        found = fields(shapes, hints)
        data = data_group(hints.get("image_size") or size, found.get("out_channels", 3), None)
        objective = dict(name="reconstruction")  # of training it further
        return dict(data=data, conditioners={}, model=dict(name=name, **found), objective=objective)

    return groups


def kl_fields(shapes: Shapes, hints: Mapping[str, Any], spelling: Spelling = DIFFUSERS) -> Fields:
    """The fields of an `AutoencoderKL`.

    Args:
        shapes: published name -> shape.
        hints: may hold scaling_factor, shift_factor, latents_mean, latents_std and norm_num_groups, which no shape
            shows.
        spelling: of the names.

    Raises:
        UserError: they are not such a network's.
    """
    found = _body(shapes, hints, spelling)
    if "quantize.embedding.weight" in shapes or shapes["encoder.conv_out.weight"][0] != 2 * found["latent_channels"]:
        raise UserError("checkpoint", message="does not hold an autoencoder with normal distributions of latents")
    statistics = _statistics(hints, found["latent_channels"])
    return (
        found
        | statistics
        | dict(use_quant_conv="quant_conv.weight" in shapes, use_post_quant_conv="post_quant_conv.weight" in shapes)
    )


def vq_fields(shapes: Shapes, hints: Mapping[str, Any], spelling: Spelling = DIFFUSERS) -> Fields:
    """The fields of a `VQModel`; otherwise as `kl_fields`."""
    if "quantize.embedding.weight" not in shapes:
        raise UserError("checkpoint", message="does not hold a codebook: there is no quantize.embedding.weight")
    found = _body(shapes, hints, spelling)
    size, width = shapes["quantize.embedding.weight"]
    return found | dict(
        num_vq_embeddings=size,
        vq_embed_dim=width if width != found["latent_channels"] else None,
        norm_type="spatial" if "decoder.conv_norm_out.norm_layer.weight" in shapes else "group",
        commitment_weight=1.0,
        codebook_weight=0.25,
        scaling_factor=hints.get("scaling_factor", 1.0),
    )


def tiny_fields(shapes: Shapes, hints: Mapping[str, Any]) -> Fields:
    """The fields of an `AutoencoderTiny`; otherwise as `kl_fields`."""
    del hints
    _require(shapes, "encoder.layers.0.weight", "decoder.layers.0.weight")
    encoder, decoder = (_levels(shapes, half) for half in ("encoder", "decoder"))
    width, wide = shapes["encoder.layers.0.weight"][0], shapes["decoder.layers.0.weight"][0]
    last = count(shapes, r"decoder\.layers\.(\d+)\.") - 1
    return dict(
        latent_channels=shapes["decoder.layers.0.weight"][1],
        out_channels=shapes[f"decoder.layers.{last}.weight"][0],
        width=width,
        decoder_width=None if wide == width else wide,
        num_encoder_blocks=encoder,
        num_decoder_blocks=decoder,
    )


def tensor_name(name: str) -> str | None:
    """The autoencoder's own name of a tensor in a file of a whole system; None for those of another part."""
    if ELSEWHERE.match(name):
        return None
    name = name.removeprefix("first_stage_model.")
    part = re.fullmatch(r"(.*\.attentions\.\d+\.)(\w+)\.(\w+)", name)
    return f"{part[1]}{FORMER[part[2]]}.{part[3]}" if part and part[2] in FORMER else name


def _body(shapes: Shapes, hints: Mapping[str, Any], spelling: Spelling) -> Fields:
    down, blocks = f"encoder.{spelling.down}", spelling.blocks
    first = f"{down.format(level=0)}.{blocks}"
    needed = ("encoder.conv_in", "encoder.conv_out", "decoder.conv_in", "decoder.conv_out", f"{first}.0.conv1")
    _require(shapes, *(f"{name}.weight" for name in needed))
    levels = [down.format(level=level) for level in range(count(shapes, down.format(level=r"(\d+)")))]
    norm = spelling.attention["norm"]
    attending = [i for i, level in enumerate(levels) if f"{level}.{spelling.attentions}.0.{norm}.weight" in shapes]
    return dict(
        latent_channels=shapes["decoder.conv_in.weight"][1],
        out_channels=shapes["decoder.conv_out.weight"][0],
        block_out_channels=tuple(shapes[f"{level}.{blocks}.0.conv1.weight"][0] for level in levels),
        layers_per_block=count(shapes, rf"{first}\.(\d+)\."),
        norm_num_groups=hints.get("norm_num_groups", GROUPS),
        attention_levels=tuple(attending),
        mid_block_add_attention=f"encoder.{spelling.middle['attention']}.{norm}.weight" in shapes,
    )


def _statistics(hints: Mapping[str, Any], channels: int) -> Fields:
    given = {name: hints.get(name, default) for name, default in (("scaling_factor", 1.0), ("shift_factor", 0.0))}
    if channels not in KNOWN or hints.keys() & given:
        return given | {name: hints[name] for name in ("latents_mean", "latents_std") if name in hints}
    found = given | KNOWN[channels]
    what = "latents are taken to be shifted by %g and scaled by %g; %s: give --shift_factor and --scaling_factor"
    logging.info(what, found["shift_factor"], found["scaling_factor"], OTHERS[channels])
    return found


def _levels(shapes: Shapes, half: str) -> tuple[int, ...]:
    """Blocks of each level of a tiny autoencoder's half: between two convolutions lie those of one level."""
    total = count(shapes, rf"{half}\.layers\.(\d+)\.")
    convs = [i for i in range(total) if f"{half}.layers.{i}.weight" in shapes]
    blocks = [i for i in range(total) if f"{half}.layers.{i}.conv.0.weight" in shapes]
    return tuple(sum(low < i < high for i in blocks) for low, high in zip(convs, convs[1:], strict=False))


def _require(shapes: Shapes, *names: str) -> None:
    absent = [name for name in names if name not in shapes]
    if absent:
        raise UserError("checkpoint", message=f"does not hold an autoencoder: there is no {absent[0]}")


def _spelt(fields: Callable[..., Fields], spelling: Spelling) -> Callable[[Shapes, Mapping[str, Any]], Fields]:
    return lambda shapes, hints: fields(shapes, hints, spelling)


# Kinds of weights -> (their groups, their spelling).
AUTOENCODERS: dict[str, tuple[Describe, Spelling]] = {
    "vae": (describe("autoencoder_kl", kl_fields), DIFFUSERS),
    "vae-compvis": (describe("autoencoder_kl", _spelt(kl_fields, COMPVIS)), COMPVIS),
    "vq": (describe("vq_model", vq_fields), DIFFUSERS),
    "vq-compvis": (describe("vq_model", _spelt(vq_fields, COMPVIS)), COMPVIS),
}
describe_tiny = describe("autoencoder_tiny", tiny_fields)
describe_lpips = describe("lpips", lpips_fields, size=64)
