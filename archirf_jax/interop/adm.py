"""openai/guided-diffusion: names, layouts and hyper-parameters of ADM's U-Nets, upsamplers and classifiers.

Shapes determine everything but the number of attention heads and the layout of their projections. Where they are a
published model's, those are known too.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from archirf_jax.errors import UserError
from archirf_jax.interop.adm_names import rename_classifier, rename_unet
from archirf_jax.interop.weights import Shapes, count, published_shapes
from archirf_jax.models import adm_classifier, adm_unet
from archirf_jax.models.adm_classifier import ADMClassifier
from archirf_jax.models.adm_unet import ADMUNet

Fields = dict[str, Any]

IMAGE_CHANNELS, CLASSES = 3, 1000  # of all published models
_LINEAR = dict(schedule="linear", steps=1000, variance="learned_range", prediction="eps")
_COSINE = _LINEAR | dict(schedule="cosine")

# Around the published U-Nets: size of the images and of those that an upsampler is given, the process (fields of
# `processes.ddpm.DDPM`), the respacing they are sampled with, and the scale of guidance by the published classifier.
PUBLISHED: dict[str, Fields] = {
    "imagenet64": dict(image_size=64, process=_COSINE, respacing="250", classifier_scale=1.0),
    "imagenet128": dict(image_size=128, process=_LINEAR, respacing="250", classifier_scale=0.5),
    "imagenet256": dict(image_size=256, process=_LINEAR, respacing="250", classifier_scale=1.0),
    "imagenet256-unconditional": dict(image_size=256, process=_LINEAR, respacing="250", classifier_scale=10.0),
    "imagenet512": dict(image_size=512, process=_LINEAR, respacing="250", classifier_scale=4.0),
    "lsun256": dict(image_size=256, process=_LINEAR, respacing="1000"),
    "upsample64-256": dict(image_size=256, low_res_size=64, process=_LINEAR, respacing="250"),
    "upsample128-512": dict(image_size=512, low_res_size=128, process=_LINEAR, respacing="250"),
}
# Around the published classifiers, which belong to the U-Net of the same name and its process.
PUBLISHED_CLASSIFIERS: dict[str, Fields] = {
    name: {key: PUBLISHED[name][key] for key in ("image_size", "process")}
    for name in ("imagenet64", "imagenet128", "imagenet256", "imagenet512")
}


def unet_fields(shapes: Shapes, hints: Mapping[str, Any], super_resolution: bool = False) -> Fields:
    """The fields of the `ADMUNet` that tensors of these shapes belong to.

    Args:
        shapes: published name -> shape.
        hints: what shapes leave open; they win over what is known of published models: num_heads,
            num_head_channels, num_heads_upsample, attention_order ("legacy" if not given), num_classes where there
            are no labels (1 if not given). 0, "" and None count as not given.
        super_resolution: whether the network is an upsampler.

    Raises:
        UserError: they are not a U-Net's, or heads are neither given nor known.
    """
    if not count(shapes, r"output_blocks\.(\d+)\."):
        raise UserError("checkpoint", message="does not hold ADM's U-Net: output_blocks.0 is missing")
    channels, outputs = image_channels(shapes, super_resolution), _shape(shapes, "out.2.weight")[0]
    labels = shapes.get("label_emb.weight")
    found = _shared_fields(shapes, _blocks(shapes, hints)) | dict(
        num_classes=labels[0] if labels else hints.get("num_classes") or 1,
        class_conditional=labels is not None,
        learn_sigma=outputs == 2 * channels,
        out_channels=None if outputs in (channels, 2 * channels) else outputs,
        super_resolution=super_resolution,
    )
    name = published_unet(shapes)
    known = adm_unet.PRESETS[name] if name else {}
    if known and known.get("super_resolution", False) != super_resolution:
        raise UserError("checkpoint", message=f"holds {name}, which is {'not ' * super_resolution}an upsampler")
    return found | {"dropout": known.get("dropout", 0.0)} | _heads(shapes, known, hints, ("num_heads_upsample",))


def classifier_fields(shapes: Shapes, hints: Mapping[str, Any]) -> Fields:
    """The fields of the `ADMClassifier` that tensors of these shapes belong to.

    Args:
        shapes: published name -> shape.
        hints: as in `unet_fields`; image_size, which only the shapes of pool "attention" determine; num_res_blocks,
            which shapes do not always determine.

    Raises:
        UserError: they are not a classifier's, or heads are neither given nor known.
    """
    if count(shapes, r"output_blocks\.(\d+)\."):
        raise UserError("checkpoint", message="does not hold ADM's classifier: output_blocks.0 belongs to a U-Net")
    found = _shared_fields(shapes, _blocks(shapes, hints)) | _pool(shapes)
    if found["pool"] == "attention":
        side = round((_shape(shapes, "out.2.positional_embedding")[1] - 1) ** 0.5)
        found["image_size"] = side * 2 ** (len(found["channel_mult"]) - 1)
    elif hints.get("image_size"):
        found["image_size"] = hints["image_size"]
    name = published_classifier(shapes)
    return found | _heads(shapes, adm_classifier.PRESETS[name] if name else {}, hints, ())


def image_channels(shapes: Shapes, super_resolution: bool = False) -> int:
    """C of the images that a network with these tensors takes; upsamplers take two images at once.

    Raises:
        UserError: there is no such network.
    """
    channels = _shape(shapes, "input_blocks.0.0.weight")[1]
    if super_resolution and channels % 2:
        message = f"input_blocks.0.0.weight takes {channels} channels, and an upsampler takes two images of as many"
        raise UserError("checkpoint", message=message)
    return channels // 2 if super_resolution else channels


def published_unet(shapes: Shapes) -> str | None:
    """The name in `PUBLISHED` of the U-Net whose tensors have exactly these shapes."""
    alike = (name for name in PUBLISHED if _alike(shapes, adm_unet.PRESETS[name]))
    return next((name for name in alike if _unet_table(name) == _tuples(shapes)), None)


def published_classifier(shapes: Shapes) -> str | None:
    """The name in `PUBLISHED_CLASSIFIERS` of the classifier whose tensors have exactly these shapes."""
    alike = (name for name in PUBLISHED_CLASSIFIERS if _alike(shapes, adm_classifier.PRESETS[name]))
    return next((name for name in alike if _classifier_table(name) == _tuples(shapes)), None)


def _alike(shapes: Shapes, preset: Fields) -> bool:
    # Excludes most without making a table, which takes a second.
    width, blocks = preset["model_channels"], len(preset["channel_mult"]) * (preset["num_res_blocks"] + 1)
    total = count(shapes, r"input_blocks\.(\d+)\.")
    return tuple(shapes.get("time_embed.0.weight", ())) == (4 * width, width) and total == blocks


def _tuples(shapes: Shapes) -> dict[str, tuple[int, ...]]:
    return {name: tuple(shape) for name, shape in shapes.items()}


@functools.cache
def _unet_table(name: str) -> dict[str, tuple[int, ...]]:
    model = ADMUNet(num_classes=CLASSES, **adm_unet.PRESETS[name])
    images, numbers = jnp.zeros((1, 64, 64, IMAGE_CHANNELS)), jnp.zeros(1)
    condition = {"label": jnp.zeros(1, jnp.int32), "low_res": images}
    like = jax.eval_shape(model.init, jax.random.key(0), images, numbers, condition)["params"]
    return published_shapes(like, rename_unet(model))


@functools.cache
def _classifier_table(name: str) -> dict[str, tuple[int, ...]]:
    model = ADMClassifier(num_classes=CLASSES, **adm_classifier.PRESETS[name])
    images = jnp.zeros((1, model.image_size, model.image_size, IMAGE_CHANNELS))
    like = jax.eval_shape(model.init, jax.random.key(0), images, jnp.zeros(1))["params"]
    return published_shapes(like, rename_classifier(model))


class _Blocks(NamedTuple):
    levels: int
    blocks: int  # residual blocks a level
    resblock_updown: bool
    conv_resample: bool


def _blocks(shapes: Shapes, hints: Mapping[str, Any]) -> _Blocks:
    """How the encoder's blocks fall into levels: what lies between two levels shows it, or the decoder does."""
    _shape(shapes, "input_blocks.0.0.weight")
    total = count(shapes, r"input_blocks\.(\d+)\.")
    kept = {int(name.split(".")[1]) for name in shapes if name.startswith("input_blocks.")}
    convs = [k for k in range(total) if f"input_blocks.{k}.0.op.weight" in shapes]
    between = convs or [k for k in range(total) if k not in kept]
    if between:
        return _Blocks(total // between[0], between[0] - 1, False, bool(convs))
    if count(shapes, r"output_blocks\.(\d+)\."):
        growing = re.compile(r"output_blocks\.(\d+)\.[12]\.in_layers\.")
        found = min((int(match[1]) for name in shapes if (match := growing.match(name))), default=total - 1)
    else:
        found = _blocks_by_widths(shapes, total, hints.get("num_res_blocks"))
    return _Blocks(total // (found + 1), found, True, True)


def _blocks_by_widths(shapes: Shapes, total: int, given: int | None) -> int:
    """Residual blocks a level, where those that halve the map look like the others: they never widen nor attend."""

    def fits(blocks: int) -> bool:
        levels = [range(first, first + blocks) for first in range(1, total, blocks + 1)]
        halving = range(blocks + 1, total, blocks + 1)
        kinds = [{(_width(shapes, k), _attends(shapes, k)) for k in level} for level in levels]
        plain = all(_width(shapes, k) == _width(shapes, k - 1) and not _attends(shapes, k) for k in halving)
        return plain and all(len(kind) == 1 for kind in kinds)

    found = [n for n in range(1, total) if total % (n + 1) == 0 and fits(n)]
    if not found:
        message = f"does not hold ADM's classifier: its {total - 1} blocks do not fall into levels"
        raise UserError("checkpoint", message=message)
    if given not in found and len(found) > 1:
        fitting = f"{', '.join(map(str, found[:-1]))} or {found[-1]}"
        message = f"the shapes fit {fitting} residual blocks a level; give this number"
        raise UserError("model.num_res_blocks", message=message)
    return given if given in found else found[0]


def _width(shapes: Shapes, k: int) -> int:
    return _shape(shapes, f"input_blocks.{k}.0.in_layers.2.weight")[0]


def _attends(shapes: Shapes, k: int) -> bool:
    return f"input_blocks.{k}.1.qkv.weight" in shapes


def _shared_fields(shapes: Shapes, blocks: _Blocks) -> Fields:
    width = _shape(shapes, "time_embed.0.weight")[1]
    firsts = [1 + level * (blocks.blocks + 1) for level in range(blocks.levels)]
    widths = [_width(shapes, first) for first in firsts]
    return dict(
        model_channels=width,
        num_res_blocks=blocks.blocks,
        channel_mult=tuple(wide / width if wide % width else wide // width for wide in widths),
        attention_downsamples=tuple(2**level for level, first in enumerate(firsts) if _attends(shapes, first)),
        scale_shift_norm=_shape(shapes, "input_blocks.1.0.emb_layers.1.weight")[0] == 2 * widths[0],
        resblock_updown=blocks.resblock_updown,
        conv_resample=blocks.conv_resample,
    )


def _pool(shapes: Shapes) -> Fields:
    if "out.2.positional_embedding" in shapes:
        return dict(pool="attention", num_classes=_shape(shapes, "out.2.c_proj.weight")[0])
    if "out.2.weight" in shapes:
        return dict(pool="spatial", num_classes=shapes["out.2.weight"][0])
    pool = "spatial_v2" if "out.1.weight" in shapes else "adaptive"
    return dict(pool=pool, num_classes=_shape(shapes, "out.3.weight")[0])


def _heads(shapes: Shapes, known: Fields, hints: Mapping[str, Any], more: tuple[str, ...]) -> Fields:
    """The number of heads and the layout of their projections; hints before what is published."""
    given = {name: hints[name] for name in ("num_heads", "num_head_channels", *more) if hints.get(name)}
    heads = given if "num_heads" in given or "num_head_channels" in given else known | given
    if not (heads.get("num_heads") or heads.get("num_head_channels")):
        width = _shape(shapes, "middle_block.1.qkv.weight")[1]
        raise UserError(
            "model.num_heads",
            message=f"the shapes leave the number of attention heads open (width {width} in the middle) and are not a "
            "published model's; give this number or model.num_head_channels",
        )
    # A width of heads that is not named must be None, whatever the network's own default.
    found = {name: heads[name] for name in ("num_heads", *more) if name in heads}
    order = hints.get("attention_order") or known.get("attention_order", "legacy")
    return found | dict(num_head_channels=heads.get("num_head_channels"), attention_order=order)


def _shape(shapes: Shapes, name: str) -> tuple[int, ...]:
    """Of a weight, which has two axes or more."""
    if len(shapes.get(name, ())) < 2:
        raise UserError("checkpoint", message=f"does not hold an ADM network: {name} is missing or not a matrix")
    return tuple(shapes[name])
