"""Kinds of published checkpoints, each described as the configuration of a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from archirf_jax.errors import UserError
from archirf_jax.interop import adm, dit, edm2, sd3
from archirf_jax.interop.adm_names import rename_classifier, rename_unet
from archirf_jax.interop.weights import Rename, Shapes
from archirf_jax.models.uncertainty import Uncertain

Hints = Mapping[str, Any]
Groups = dict[str, dict[str, Any]]  # of a configuration

# A run's configuration of training, where there was none.
RUN: dict[str, Any] = {
    "task": "diffusion",
    "first_stage": dict(name="image"),
    "conditioners": dict(label=dict(name="label")),
    "seed": 0,
    "steps": 1,
    "batch_size": 128,
    "optimizer": dict(name="adamw", learning_rate=1e-4, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0, clip_norm=1.0),
    "schedule": dict(name="constant", warmup_steps=0),
    "ema": dict(decay=0.9999),
    "sample": dict(classes=10, per_class=8),
}
TOKENS = 154  # of a text, as published: 77 of CLIP and 77 of T5
IMAGE_SIZE = 64  # of networks that take any size, where none is given


@dataclasses.dataclass(frozen=True)
class Source:
    """One kind of published checkpoint.

    Attributes:
        describe: (shapes, hints) -> the groups data, model, process, objective and sample of a run's configuration.
        rename: (network, image size) -> where each parameter lies.
        constants: (network, image size) -> tensors with these values that a checkpoint may hold, not parameters.
        tensor_name: a tensor's name in this network; None where it belongs to another in the same file.
        task: what samples from it: a file of archirf_jax/tasks.
        uncertain: whether a head that learns the expected loss belongs to the network.
    """

    describe: Callable[[Shapes, Hints], Groups]
    rename: Callable[[Any, int], Rename]
    constants: Callable[[Any, int], dict[str, np.ndarray]] = lambda model, size: {}
    tensor_name: Callable[[str], str | None] = lambda name: name
    task: str = "diffusion"
    uncertain: bool = False


def _describe_dit(shapes: Shapes, hints: Hints) -> Groups:
    _require(shapes, "DiT", "x_embedder.proj.weight", "blocks.0.attn.qkv.weight")
    fields = dit.fields(shapes, hints)
    # Without a table of positions: published for 256 pixels, in latents of 32x32.
    largest = round(shapes[dit.POSITIONS][1] ** 0.5) * fields["patch_size"] if dit.POSITIONS in shapes else 32
    size = hints.get("image_size") or largest
    process = dict(name="ddpm", schedule="linear", steps=1000, prediction="eps")
    variance = "learned_range" if fields["learn_sigma"] else "fixed_large"
    dropout = 0.1 if fields["null_label"] else 0.0
    return dict(
        data=_data(size, shapes["x_embedder.proj.weight"][1], fields),
        model=dict(name="dit", **fields),
        process=process | dict(variance=variance),
        objective=dict(name="ddpm_hybrid", condition_dropout=dropout),
        sample=_sample("ddpm", dict(name="250"), 250, scale=4.0 if dropout else 1.0),
    )


def _describe_sd3(shapes: Shapes, hints: Hints) -> Groups:
    _require(shapes, "Stable Diffusion 3", "x_embedder.proj.weight", "joint_blocks.0.x_block.attn.qkv.weight")
    fields = sd3.fields(shapes, hints)
    largest = (fields["position_size"] or 0) * fields["patch_size"] or 128
    size = hints.get("image_size") or min(128, largest)  # published: 1024 pixels, in latents of 128x128
    return dict(
        data=_data(size, shapes["x_embedder.proj.weight"][1], fields),
        model=dict(name="mmdit", **fields),
        process=dict(name="rectified_flow", time_scale=1000.0),
        objective=dict(name="regression", time_distribution="logit_normal", shift=3.0, condition_dropout=0.1),
        conditioners=dict(text=_text(fields)),
        sample=_sample("euler", dict(name="shifted", shift=3.0), 28, scale=5.0),
    )


def _text(fields: Mapping[str, Any]) -> dict[str, Any]:
    width, pooled = fields["context_width"] or fields["hidden_size"], fields["pooled_width"]
    given = dict(tokens=(TOKENS, width)) | (dict(pooled=(pooled,)) if pooled else {})
    return dict(name="given", shapes=given)


def _describe_adm(shapes: Shapes, hints: Hints, super_resolution: bool = False) -> Groups:
    fields = adm.unet_fields(shapes, hints, super_resolution)
    known = adm.PUBLISHED.get(adm.published_unet(shapes) or "", {})
    variance = "learned_range" if fields["learn_sigma"] else "fixed_large"
    process = _adm_process(known, hints) | dict(variance=variance)
    respacing = known.get("respacing", "250")
    return dict(
        data=_data(_size(known, hints), adm.image_channels(shapes, super_resolution), fields),
        model=dict(name="adm_unet", **fields),
        process=process,
        objective=dict(name="ddpm_hybrid", condition_dropout=0.0),
        sample=_sample("ddpm", dict(name=respacing), int(respacing))
        | dict(classifier_scale=known.get("classifier_scale", 1.0)),
    )


def _describe_adm_superres(shapes: Shapes, hints: Hints) -> Groups:
    groups = _describe_adm(shapes, hints, super_resolution=True)
    known = adm.PUBLISHED.get(adm.published_unet(shapes) or "", {})
    size = known.get("low_res_size", groups["data"]["image_size"] // 4)
    image = dict(low_res=(size, size, groups["data"]["channels"]))
    low_res = dict(name="given", shapes=image, droppable=False)
    return groups | dict(conditioners=RUN["conditioners"] | dict(low_res=low_res))


def _describe_adm_classifier(shapes: Shapes, hints: Hints) -> Groups:
    fields = adm.classifier_fields(shapes, hints)
    known = adm.PUBLISHED_CLASSIFIERS.get(adm.published_classifier(shapes) or "", {})
    size = fields.get("image_size") or _size(known, hints)
    return dict(
        data=_data(size, adm.image_channels(shapes), fields),
        model=dict(name="adm_classifier", **fields),
        process=_adm_process(known, hints),
        objective=dict(name="ddpm_hybrid", condition_dropout=0.0),
        sample={},
    )


def _describe_edm2(shapes: Shapes, hints: Hints) -> Groups:
    fields, outside = edm2.fields(shapes, hints), edm2.outside(shapes)
    known = edm2.PUBLISHED[edm2.published(shapes) or "edm2-img512-s"]
    head = dict(name="uncertainty", channels=outside.uncertainty_channels, condition_dropout=0.0)
    return dict(
        data=_data(outside.image_size, outside.channels, fields),
        model=dict(name="edm2_unet", dropout=known["dropout"], **fields),
        process=dict(name="edm") | known["process"],
        objective=head | dict(time_distribution="log_normal") | known["objective"],
        sample=known["sample"] | dict(guidance=dict(name="classifier_free", scale=1.0)),
    )


def _sample(solver: str, grid: dict[str, Any], steps: int, scale: float = 1.0) -> dict[str, Any]:
    guidance = dict(name="classifier_free", scale=scale)
    return dict(solver=dict(name=solver), grid=grid, steps=steps, guidance=guidance)


def _require(shapes: Shapes, what: str, *names: str) -> None:
    absent = [name for name in names if name not in shapes]
    if absent:
        raise UserError("checkpoint", message=f"does not hold {what}: {absent[0]} is missing")


def _data(size: int, channels: int, fields: dict[str, Any]) -> dict[str, Any]:
    classes = fields.pop("num_classes")
    return dict(
        name="imported", dir="data", split="train", label_key="label", image_size=size, channels=channels,
        num_classes=classes,
    )  # fmt: skip


def _adm_process(known: Mapping[str, Any], hints: Hints) -> dict[str, Any]:
    process = dict(known.get("process", dict(schedule="linear", steps=1000, prediction="eps")))
    given = {"schedule": hints["schedule"]} if hints.get("schedule") else {}
    return dict(name="ddpm") | process | given


def _size(known: Mapping[str, Any], hints: Hints) -> int:
    return hints.get("image_size") or known.get("image_size", IMAGE_SIZE)


SOURCES = {
    "dit": Source(_describe_dit, lambda model, size: dit.rename(model), dit.constants),
    "sd3": Source(_describe_sd3, lambda model, size: sd3.rename(model), tensor_name=sd3.tensor_name),
    "adm": Source(_describe_adm, lambda model, size: rename_unet(model)),
    "adm-superres": Source(_describe_adm_superres, lambda model, size: rename_unet(model)),
    "adm-classifier": Source(_describe_adm_classifier, lambda model, size: rename_classifier(model), task="classifier"),
    "edm2": Source(_describe_edm2, edm2.rename, uncertain=True),
}
MODELS = {"dit": "dit", "mmdit": "sd3", "adm_unet": "adm", "adm_classifier": "adm-classifier", "edm2_unet": "edm2"}


def configuration(source: str, shapes: Shapes, hints: Hints) -> dict[str, Any]:
    """The configuration of the run that tensors of these shapes make.

    Raises:
        UserError: they are not such a network's, or they and the hints leave a field open.
    """
    given = {name: value for name, value in hints.items() if value is not None}
    try:
        groups = SOURCES[source].describe(shapes, given)
    except UserError:
        raise
    except (ArithmeticError, LookupError, TypeError, ValueError) as e:  # a tensor with fewer or more axes
        raise UserError("checkpoint", message=f"does not hold tensors of a {source} network: {e}") from e
    groups["model"].setdefault("dtype", "float32")
    sample = RUN["sample"] | groups.pop("sample")
    return RUN | groups | {"task": SOURCES[source].task, "sample": sample}


def rename(source: str, model: Any, image_size: int) -> Rename:
    """Where each parameter of a network for images of this size lies in the published weights.

    Raises:
        UserError: the published network is another.
    """
    if isinstance(model, Uncertain) != SOURCES[source].uncertain:
        having = "has" if SOURCES[source].uncertain else "does not have"
        message = f"the published network {having} a head that learns the expected loss (objective 'uncertainty')"
        raise UserError("objective.name", message=message)
    return SOURCES[source].rename(model, image_size)


def split_prefix(names: Any, source: str) -> tuple[str, dict[str, str]]:
    """What all names of this network begin with, and {name in the file: name in the network}.

    Raises:
        UserError: two tensors have the same name in the network.
    """
    own = {name: SOURCES[source].tensor_name(name) for name in names}
    kept = {name: inner for name, inner in own.items() if inner is not None}
    if len(set(kept.values())) < len(kept):
        twice = next(name for name, inner in kept.items() if name != inner and inner in kept)
        message = f"holds both {twice} and {kept[twice]}; write a file with one of them"
        raise UserError("checkpoint", message=message)
    prefixes = {name.removesuffix(inner) for name, inner in kept.items()}
    return (prefixes.pop() if len(prefixes) == 1 else ""), kept
