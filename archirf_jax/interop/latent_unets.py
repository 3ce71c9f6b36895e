"""diffusers' UNet2DConditionModel: hyper-parameters of latent diffusion's U-Nets, and what is known of those published.

Shapes determine everything but the number of attention heads, and how wide the numbers of an image's size are embedded.
Both are the same in all weights of a kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from absl import logging

from archirf_jax.errors import UserError
from archirf_jax.interop.weights import Shapes, count, require
from archirf_jax.models.latent_unet import PRESETS

Fields = dict[str, Any]
TEXT_LENGTH = 77  # tokens of a text that CLIP encodes
_UPSCALER_BETAS = dict(beta_start=1e-4, beta_end=0.02)

# Kind of weights -> the preset of the published network, pixels a side of its latents, the process (fields of
# `processes.ddpm.DDPM` besides its schedule), and how the published pipelines sample: steps and scale of guidance.
PUBLISHED: dict[str, Fields] = {
    "sd15": dict(preset="sd15", image_size=64, process=dict(prediction="eps"), steps=50, scale=7.5),
    "sd2": dict(preset="sd21", image_size=96, process=dict(prediction="v"), steps=50, scale=7.5),
    "sdxl": dict(preset="sdxl", image_size=128, process=dict(prediction="eps"), steps=50, scale=5.0),
    "sdxl-refiner": dict(preset="sdxl-refiner", image_size=128, process=dict(prediction="eps"), steps=50, scale=5.0),
    "sd-upscaler": dict(preset="sd-upscaler", image_size=128, process=dict(prediction="v") | _UPSCALER_BETAS)
    | dict(steps=75, scale=9.0),
}
BASE_SIZE = 64  # of latents of Stable Diffusion 2's networks that predict noise
WHOLE = (
    "has the names of CompVis' layout, a system in one file, which is not read; give the folder that diffusers makes "
    "of it: StableDiffusionPipeline.from_single_file(FILE).save_pretrained(FOLDER)"
)
NEEDED = (
    *("conv_in.weight", "conv_out.weight", "down_blocks.0.resnets.0.conv1.weight"),
    *("mid_block.attentions.0.proj_in.weight", "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"),
)


def unet_fields(source: str, shapes: Shapes, hints: Mapping[str, Any]) -> Fields:
    """The fields of the `LatentUNet` that tensors of these shapes belong to.

    Args:
        source: a name in `PUBLISHED`.
        shapes: published name -> shape.
        hints: what shapes leave open; they win over what is known of published models: num_heads or
            num_head_channels, norm_num_groups, size_width, only_cross_attention.

    Raises:
        UserError: they are not such a network's.
    """
    if any("input_blocks." in name for name in shapes):
        raise UserError("checkpoint", message=WHOLE)
    require(shapes, "latent diffusion's U-Net", *NEEDED)
    known = PRESETS[PUBLISHED[source]["preset"]]
    downs = [f"down_blocks.{i}" for i in range(count(shapes, r"down_blocks\.(\d+)\."))]
    widths = tuple(shapes[f"{down}.resnets.0.conv1.weight"][0] for down in downs)
    first = shapes["down_blocks.0.resnets.0.time_emb_proj.weight"][0]
    context = shapes["mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"][1]
    fields = dict(
        block_out_channels=widths,
        layers_per_block=_one([count(shapes, rf"{down}\.resnets\.(\d+)\.") for down in downs]),
        transformer_depth=_one([_depth(shapes, f"{down}.attentions.0") for down in downs]),
        middle_depth=_depth(shapes, "mid_block.attentions.0"),
        only_cross_attention=hints.get(
            "only_cross_attention", _one([_only_cross(shapes, down, context) for down in downs])
        ),
        use_linear_projection=len(shapes["mid_block.attentions.0.proj_in.weight"]) == 2,
        context_width=context,
        norm_num_groups=hints.get("norm_num_groups", 32),
        scale_shift_norm=first == 2 * widths[0],
        noise_levels=shapes.get("class_embedding.weight", (None,))[0],
        low_res=known.get("low_res", False),
        inpaint=not known.get("low_res", False) and _fills(shapes),
    )
    _check_kind(source, fields)
    return fields | _heads(known, hints) | _sizes(shapes, known, hints)


def image_channels(shapes: Shapes, low_res: bool) -> tuple[int, int]:
    """(C of the latents, C of the image that is concatenated, or 0).

    Raises:
        UserError: the network takes other channels than those.
    """
    taken, given = shapes["conv_in.weight"][1], shapes["conv_out.weight"][0]
    if not low_res and _fills(shapes):
        return given, 0
    if (taken > given) == low_res and taken >= given:
        return given, taken - given
    what = "as an image is concatenated" if low_res else "as networks that see depth are not read"
    relation = "more than" if low_res else "as many as, or for one that fills holes 1 + 2 times,"
    raise UserError("checkpoint", message=f"takes {taken} channels, which must be {relation} it gives, {given}, {what}")


def process_fields(source: str, hints: Mapping[str, Any]) -> Fields:
    """The fields of the process that the network was trained with; hints may hold prediction."""
    process = dict(PUBLISHED[source]["process"])
    if source == "sd2" and "prediction" not in hints:
        logging.info("the network is taken to predict v, as 768-pixel ones do; 512-base looks alike: --prediction=eps")
    given = {"prediction": hints["prediction"]} if hints.get("prediction") else {}
    fixed = dict(name="ddpm", schedule="scaled_linear", steps=1000, variance="fixed_small")
    return fixed | process | given


def latent_size(source: str, prediction: str, hints: Mapping[str, Any]) -> int:
    """Pixels a side of the latents that the network was trained on, unless hints give image_size."""
    published = PUBLISHED[source]["image_size"]
    trained = BASE_SIZE if source == "sd2" and prediction == "eps" else published
    return int(hints.get("image_size") or trained)


def conditioners(fields: Mapping[str, Any], size: int, channels: int, low_res: int) -> Fields:
    """The groups of conditioners: a text, and what the network reads besides, which is never dropped."""

    def given(droppable: bool, **shapes: tuple[int, ...]) -> Fields:
        return {"name": "given", "shapes": shapes} | ({} if droppable else {"droppable": False})

    text: dict[str, tuple[int, ...]] = {"tokens": (TEXT_LENGTH, fields["context_width"])}
    groups: Fields = {}
    if fields["pooled_width"]:
        text["pooled"] = (fields["pooled_width"],)
        groups["size"] = given(False, size=(fields["size_numbers"],))
    if low_res:
        groups["low_res"] = given(False, low_res=(size, size, low_res))
    if fields["inpaint"]:
        groups["inpaint"] = given(False, inpaint=(size, size, 1 + channels))
    if fields["noise_levels"]:
        groups["noise_level"] = given(False, noise_level=())
    return {"text": given(True, **text)} | groups


def _fills(shapes: Shapes) -> bool:
    """Whether the network takes a hole and the latents around it beside its own."""
    return shapes["conv_in.weight"][1] == 1 + 2 * shapes["conv_out.weight"][0]


def _depth(shapes: Shapes, transformer: str) -> int:
    return count(shapes, rf"{transformer}\.transformer_blocks\.(\d+)\.")


def _only_cross(shapes: Shapes, down: str, context: int) -> bool:
    """Where texts are as wide as the level nothing shows it; published networks then attend to pixels."""
    key = shapes.get(f"{down}.attentions.0.transformer_blocks.0.attn1.to_k.weight")
    return key is not None and key[0] != key[1] == context


def _one(values: list[Any]) -> Any:
    """The value of all levels, or a tuple of theirs."""
    return values[0] if len(set(values)) == 1 else tuple(values)


def _check_kind(source: str, fields: Fields) -> None:
    """Refuse the network of another kind that is published: its heads and its process would be wrong."""
    widths = ("block_out_channels", "context_width", "use_linear_projection")
    for other, about in PUBLISHED.items():
        preset = PRESETS[about["preset"]]
        alike = all(fields[name] == preset.get(name, False) for name in widths)
        if alike and other != source:
            raise UserError("checkpoint", message=f"is a network of the kind {other}, not {source}: --source={other}")


def _heads(known: Mapping[str, Any], hints: Mapping[str, Any]) -> Fields:
    names = ("num_heads", "num_head_channels")
    given = {name: hints[name] for name in names if hints.get(name)}
    return given or {name: known[name] for name in names if name in known}


def _sizes(shapes: Shapes, known: Mapping[str, Any], hints: Mapping[str, Any]) -> Fields:
    """How the pooled text and the numbers of the size share the vector that is embedded."""
    vector = shapes.get("add_embedding.linear_1.weight", (0, 0))[1]
    if not vector:
        return dict(pooled_width=None, size_width=None)
    if "size_width" not in known:
        raise UserError("checkpoint", message="reads the size of images, as SDXL does: --source=sdxl or sdxl-refiner")
    width, numbers = hints.get("size_width") or known["size_width"], known.get("size_numbers", 6)
    pooled = vector - numbers * width
    if pooled < 1:
        what = f"is too wide for a vector of {vector} channels, which holds {numbers} numbers and a pooled text"
        raise UserError("model.size_width", width, what)
    return dict(pooled_width=pooled, size_width=width, size_numbers=numbers)
