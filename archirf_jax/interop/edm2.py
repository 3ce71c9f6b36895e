"""NVlabs/edm2: names, layouts and hyper-parameters of the published EDM2 networks.

The published `Precond` is a U-Net with preconditioning around it, which is a process here (`edm`), and a head that
learns the logarithm of the loss: `Uncertain`. Its blocks are named after the height and width of their images, ours
after their level. Weights of convolutions of size 1 are matrices here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from archirf_jax.errors import UserError
from archirf_jax.interop.weights import CONV, LINEAR, SAME, Layout, Path, Rename, Shapes, count
from archirf_jax.models.edm2_unet import PRESETS, EDM2UNet
from archirf_jax.models.uncertainty import Uncertain

POINT = Layout(lambda w: w[:, :, 0, 0].T, lambda w: w.T[:, :, None, None])  # a convolution of size 1 <-> (in, out)

# Around the blocks and inside one: our path -> published name and layout.
OUTER: dict[Path, tuple[str, Layout]] = {
    ("network", "time_features", "frozen_frequencies"): ("unet.emb_fourier.freqs", SAME),
    ("network", "time_features", "frozen_phases"): ("unet.emb_fourier.phases", SAME),
    ("network", "noise_embedding", "kernel"): ("unet.emb_noise.weight", LINEAR),
    ("network", "label_embedding", "kernel"): ("unet.emb_label.weight", LINEAR),
    ("network", "out_gain"): ("unet.out_gain", SAME),
    ("network", "out_conv", "kernel"): ("unet.out_conv.weight", CONV),
    ("uncertainty_features", "frozen_frequencies"): ("logvar_fourier.freqs", SAME),
    ("uncertainty_features", "frozen_phases"): ("logvar_fourier.phases", SAME),
    ("uncertainty", "kernel"): ("logvar_linear.weight", LINEAR),
}
INNER: dict[Path, tuple[str, Layout]] = {
    ("kernel",): ("weight", CONV),  # the very first convolution, which is not a block
    ("embedding_gain",): ("emb_gain", SAME),
    ("embedding", "kernel"): ("emb_linear.weight", LINEAR),
    ("conv_0", "kernel"): ("conv_res0.weight", CONV),
    ("conv_1", "kernel"): ("conv_res1.weight", CONV),
    ("skip", "kernel"): ("conv_skip.weight", POINT),
    ("qkv", "kernel"): ("attn_qkv.weight", POINT),
    ("out", "kernel"): ("attn_proj.weight", POINT),
}

# Of Stable Diffusion's latents, not scaled, as the networks of ImageNet-512 take them: deviation 0.5, mean 0.
LATENTS = dict(mean=(5.81, 3.25, 0.12, -2.15), std=(4.17 / 0.5, 4.62 / 0.5, 3.71 / 0.5, 3.28 / 0.5))
_PROCESS = dict(sigma_data=0.5, sigma_min=0.002, sigma_max=80.0, time_scale=1.0)
_SIZES = {"img512": ("XS", "S", "M", "L", "XL", "XXL"), "img64": ("S", "M", "L", "XL")}
_DATA = {
    "img512": dict(image_size=64, channels=4, objective=dict(P_mean=-0.4, P_std=1.0)),
    "img64": dict(image_size=64, channels=3, objective=dict(P_mean=-0.8, P_std=1.6)),
}
# Around the published networks (Karras et al. 2024, Table 6): the preset of `EDM2UNet` and the dropout that it
# was trained with, the data, the process (fields of `processes.edm.EDM`), and the objective (those of
# `objectives.uncertainty`).
PUBLISHED: dict[str, dict[str, Any]] = {
    f"edm2-{data}-{size.lower()}": dict(
        preset=size,
        dropout=0.0 if size in ("XS", "S") else 0.1,
        num_classes=1000,
        process=_PROCESS,
        **_DATA[data],
    )
    for data, sizes in _SIZES.items()
    for size in sizes
}
# Fields of the network that shapes leave open.
HINTED = ("channels_per_head", "label_balance", "concat_balance", "res_balance", "attn_balance", "clip_act")


class Outside(NamedTuple):
    """Properties that the tensors determine besides the network's own fields.

    Attributes:
        image_size: pixels a side.
        channels: of images.
        uncertainty_channels: `Uncertain.channels`.
    """

    image_size: int
    channels: int
    uncertainty_channels: int


def rename(model: Uncertain, image_size: int) -> Rename:
    """Where the parameters of a wrapped `EDM2UNet` lie in a published `state_dict` for images of this size."""
    del model  # every name follows from the path

    def find(path: Path) -> tuple[str, Layout]:
        if path in OUTER:
            return OUTER[path]
        part, level, what = path[1].split("_")  # such as enc_2_block0
        side = image_size >> int(level)
        name, layout = INNER[path[2:]]
        return f"unet.{part}.{side}x{side}_{what}.{name}", layout

    return find


def outside(shapes: Shapes) -> Outside:
    """The surroundings of the network that tensors of these shapes belong to.

    Raises:
        UserError: they are not an EDM2 network's.
    """
    side = _sides(shapes)[0]
    return Outside(side, _shape(shapes, "unet.out_conv.weight")[0], _shape(shapes, "logvar_linear.weight")[1])


def fields(shapes: Shapes, hints: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the `EDM2UNet` that tensors of these shapes belong to.

    Args:
        shapes: published name -> shape.
        hints: what shapes leave open: those of `HINTED`, as published if not given, resample_filter, and num_classes
            where there are no labels (1 if not given). 0, "" and None count as not given.

    Raises:
        UserError: they are not an EDM2 network's, or the heads are neither given nor known.
    """
    sides, labels = _sides(shapes), shapes.get("unet.emb_label.weight")
    first, last = (f"{side}x{side}" for side in (sides[0], sides[-1]))
    widths = [_shape(shapes, f"unet.dec.{side}x{side}_block0.conv_res1.weight")[0] for side in sides]
    attends = [f"unet.dec.{side}x{side}_block0.attn_qkv.weight" in shapes for side in sides]
    middle = f"unet.dec.{last}_in0.attn_qkv.weight"
    found = _widths(shapes, widths) | {
        "num_classes": labels[1] if labels else hints.get("num_classes") or 1,
        "class_conditional": labels is not None,
        "num_blocks": count(shapes, rf"unet\.dec\.{first}_block(\d+)\.") - 1,
        "attention_levels": tuple(level for level, attention in enumerate(attends) if attention),
        "middle_attention": middle in shapes,
    }
    attending = {width for width, attention in zip(widths, attends, strict=True) if attention}
    attending |= {shapes[middle][1]} if middle in shapes else set()
    if attending and not hints.get("channels_per_head") and not published(shapes):
        raise UserError(
            "model.channels_per_head",
            message=f"{', '.join(map(str, sorted(attending)))} channels attend, and the tensors are not a published "
            "network's and leave open how many belong to a head; give this number",
        )
    given = {name: hints[name] for name in (*HINTED, "resample_filter") if hints.get(name)}
    return found | {"channels_per_head": 64} | given


def published(shapes: Shapes) -> str | None:
    """The name in `PUBLISHED` of the network whose tensors have these shapes."""
    found, around = EDM2UNet(**fields(shapes, {"channels_per_head": 64})), outside(shapes)
    for name, known in PUBLISHED.items():
        network = EDM2UNet(num_classes=known["num_classes"], **PRESETS[known["preset"]])
        if network == found and around == Outside(known["image_size"], known["channels"], Uncertain.channels):
            return name
    return None


def _widths(shapes: Shapes, levels: list[int]) -> dict[str, Any]:
    """The fields of widths in their greatest common unit; published defaults are left to the network."""
    emb, noise = _shape(shapes, "unet.emb_noise.weight")
    others = {"channel_mult_noise": noise * (noise != levels[0]), "channel_mult_emb": emb * (emb != max(levels))}
    unit = math.gcd(*levels, *others.values())
    multiples = {name: width // unit or None for name, width in others.items()}
    return {"model_channels": unit, "channel_mult": tuple(width // unit for width in levels)} | multiples


def _sides(shapes: Shapes) -> list[int]:
    """The heights of images of each level."""
    blocks = [re.match(r"unet\.dec\.(\d+)x\1_block0\.", name) for name in shapes]
    sides = sorted({int(block[1]) for block in blocks if block}, reverse=True)
    if not sides:
        message = "does not hold an EDM2 network: unet.dec.64x64_block0 or the like is missing"
        raise UserError("checkpoint", message=message)
    return sides


def _shape(shapes: Shapes, name: str) -> tuple[int, ...]:
    if name not in shapes:
        raise UserError("checkpoint", message=f"does not hold an EDM2 network: {name} is missing")
    return tuple(shapes[name])
