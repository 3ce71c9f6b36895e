"""Kinds of published checkpoints, each as the configuration of a run."""

from __future__ import annotations

import dataclasses
import functools
import os.path
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from absl import logging

from archirf_jax.errors import UserError
from archirf_jax.interop import (
    adm,
    autoencoders,
    dit,
    edm2,
    latent_unets,
    sd3,
    sd3_diffusers,
    text_encoders,
    text_names,
)
from archirf_jax.interop.adm_names import rename_classifier, rename_unet
from archirf_jax.interop.autoencoder_names import Spelling, rename_autoencoder
from archirf_jax.interop.imported_data import data_group
from archirf_jax.interop.latent_unet_names import rename_latent_unet
from archirf_jax.interop.lpips_names import lpips_constants, lpips_tensor_name, rename_lpips
from archirf_jax.interop.taesd_names import rename_taesd
from archirf_jax.interop.weights import Rename, Shapes, require
from archirf_jax.models.uncertainty import Uncertain

Hints = Mapping[str, Any]
Groups = dict[str, dict[str, Any]]  # of a configuration

CHECKPOINT = "checkpoint"  # the field that errors about the tensors name
IMAGE_SIZE = 64  # of networks that take images of any size, where no hint gives it
LABEL = {"label": {"name": "label"}}


@dataclasses.dataclass(frozen=True)
class Source:
    """One kind of published checkpoint.

    Attributes:
        describe: (shapes, hints) -> the groups of a run's configuration that the weights decide: data, conditioners,
            model, process, objective and sample.
        rename: (network, image size) -> where each parameter lies.
        constants: (network, image size) -> tensors that a checkpoint may hold, no parameters, with these values.
        tensor_name: a tensor's name in this network; None where it belongs to another in the same file.
        task: what samples from it: a file of archirf_jax/tasks.
        uncertain: whether the network also answers the loss that it expects.
        latents: mean and std of the latents that it diffuses, where the autoencoder's own scaling is another.
        inputs: `config.data` -> shapes of what a network is called with whose task is "network".
        half: whether weights in half precision stay so; no layer may compute with parameters alone, which would round.
        aliases: another name of a tensor in this network -> its name; files may hold it under either or both.
        spellings: a tensor that the network has in other names alone -> the kind that reads those.
    """

    describe: Callable[[Shapes, Hints], Groups]
    rename: Callable[[Any, int], Rename]
    constants: Callable[[Any, int], dict[str, np.ndarray]] = lambda model, size: {}
    tensor_name: Callable[[str], str | None] = lambda name: name
    task: str = "diffusion"
    uncertain: bool = False
    inputs: Callable[[Any], tuple[jax.ShapeDtypeStruct, ...]] = lambda data: ()
    half: bool = False
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)
    spellings: Mapping[str, str] = dataclasses.field(default_factory=dict)
    latents: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def _describe_dit(shapes: Shapes, hints: Hints) -> Groups:
    groups = _labelled_dit(shapes, hints, "DiT")
    logging.info("the network is taken to predict noise, as DiT does; SiT's look alike: --source=sit, or repa")
    groups["process"] = _ddpm(variance=_variance(groups["model"]))
    groups["objective"]["name"] = "ddpm_hybrid"
    groups["sample"] = _sample("ddpm", _respaced("250"), 250, scale=4.0 if groups["model"]["null_label"] else 1.0)
    return groups


def _describe_sit(shapes: Shapes, hints: Hints, towards: str = "data", scale: float = 4.0, **sampled: Any) -> Groups:
    groups = _labelled_dit(shapes, hints, "SiT")
    model = groups["model"]
    model["spare_channels"] = model.pop("learn_sigma")
    groups["process"] = dict(name="rectified_flow", path="linear", prediction="velocity", time_scale=1.0)
    groups["process"]["towards"] = towards
    groups["objective"] |= dict(name="regression", time_distribution="uniform")
    groups["sample"] = _sample("heun", dict(name="uniform"), 50, scale=scale if model["null_label"] else 1.0)
    groups["sample"]["guidance"] |= sampled
    return groups


def _describe_repa(shapes: Shapes, hints: Hints) -> Groups:
    return _describe_sit(shapes, hints, towards="noise", scale=1.8, interval=(0.0, 0.7))


def _labelled_dit(shapes: Shapes, hints: Hints, what: str) -> Groups:
    """The groups that all class-conditional DiT have in common."""
    require(shapes, what, "x_embedder.proj.weight", "blocks.0.attn.qkv.weight")
    fields = dit.fields(shapes, hints)
    # Published for 256 pixels, in latents of 32x32, where no table of positions shows the size.
    largest = round(shapes[dit.POSITIONS][1] ** 0.5) * fields["patch_size"] if dit.POSITIONS in shapes else 32
    size, classes = hints.get("image_size") or largest, fields["num_classes"]
    if fields["null_label"] and not (hints.get("num_classes") or classes == dit.CLASSES):
        message = "%d classes and a null label are assumed; give num_classes=%d if every row of labels is a class"
        logging.info(message, classes, classes + 1)
    return dict(
        data=_data(size, shapes["x_embedder.proj.weight"][1], fields),
        conditioners=LABEL,
        model=dict(name="dit", **fields),
        objective=dict(condition_dropout=0.1 if fields["null_label"] else 0.0),
    )


def _describe_sd3(shapes: Shapes, hints: Hints) -> Groups:
    require(shapes, "Stable Diffusion 3", "x_embedder.proj.weight", "joint_blocks.0.x_block.attn.qkv.weight")
    fields = sd3.fields(shapes, hints)
    largest = (fields["position_size"] or 0) * fields["patch_size"] or 128
    size = hints.get("image_size") or min(128, largest)  # published: 1024 pixels, in latents of 128x128
    text = {"tokens": (1, fields["context_width"] or fields["hidden_size"])}
    pooled = {"pooled": (fields["pooled_width"],)} if fields["pooled_width"] else {}
    times = dict(time_distribution="logit_normal", logit_mean=0.0, logit_std=1.0, shift=3.0)
    return dict(
        data=_data(size, shapes["x_embedder.proj.weight"][1], fields) | dict(label_key=None),
        conditioners={"text": {"name": "given", "shapes": text | pooled}},
        model=dict(name="mmdit", **fields),
        process=dict(name="rectified_flow", path="linear", prediction="velocity", time_scale=1000.0),
        objective=dict(name="regression", condition_dropout=0.1) | times,
        sample=_sample("euler", dict(name="shifted", shift=3.0), 28, scale=5.0),
    )


def _describe_sd3_of_diffusers(shapes: Shapes, hints: Hints) -> Groups:
    return _describe_sd3(sd3_diffusers.as_reference(shapes), hints)


def _describe_latent_unet(source: str, shapes: Shapes, hints: Hints) -> Groups:
    known, fields = latent_unets.PUBLISHED[source], latent_unets.unet_fields(source, shapes, hints)
    process = latent_unets.process_fields(source, hints)
    size = latent_unets.latent_size(source, process["prediction"], hints)
    channels, low_res = latent_unets.image_channels(shapes, fields["low_res"])
    return dict(
        data=data_group(size, channels, 1) | dict(label_key=None),
        conditioners=latent_unets.conditioners(fields, size, channels, low_res),
        model=dict(name="latent_unet", **fields),
        process=process,
        objective=dict(name="regression", time_distribution="steps", condition_dropout=0.1),
        sample=_sample("ddim", dict(name="leading"), known["steps"], scale=known["scale"]),
    )


def _describe_adm(shapes: Shapes, hints: Hints, super_resolution: bool = False) -> Groups:
    fields = adm.unet_fields(shapes, hints, super_resolution)
    known = adm.PUBLISHED.get(adm.published_unet(shapes) or "", {})
    size, channels = _size(known, hints), adm.image_channels(shapes, super_resolution)
    low_res = known.get("low_res_size", max(1, size // 4))
    given = {"name": "given", "shapes": {"low_res": (low_res, low_res, channels)}, "droppable": False}
    respacing = known.get("respacing", "250")
    # The published scripts clip what is predicted to [-1, 1] (clip_denoised=True).
    sampled = _sample("ddpm", _respaced(respacing), int(respacing), threshold="static")
    return dict(
        data=_data(size, channels, fields),
        conditioners=LABEL | ({"low_res": given} if super_resolution else {}),
        model=dict(name="adm_unet", **fields),
        process=_adm_process(known, hints) | dict(variance=_variance(fields)),
        objective=dict(name="ddpm_hybrid", condition_dropout=0.0),
        sample=sampled | dict(classifier_scale=known.get("classifier_scale", 1.0)),
    )


def _describe_adm_superres(shapes: Shapes, hints: Hints) -> Groups:
    return _describe_adm(shapes, hints, super_resolution=True)


def _describe_adm_classifier(shapes: Shapes, hints: Hints) -> Groups:
    fields = adm.classifier_fields(shapes, hints)
    known = adm.PUBLISHED_CLASSIFIERS.get(adm.published_classifier(shapes) or "", {})
    size = fields.get("image_size") or _size(known, hints)
    return dict(
        data=_data(size, adm.image_channels(shapes), fields),
        conditioners=LABEL,
        model=dict(name="adm_classifier", **fields),
        process=_adm_process(known, hints),
        objective=dict(name="regression", time_distribution="steps", condition_dropout=0.0),
        sample=_sample("ddpm", _respaced("250"), 250),
    )


def _describe_edm2(shapes: Shapes, hints: Hints) -> Groups:
    fields, outside = edm2.fields(shapes, hints), edm2.outside(shapes)
    known = edm2.PUBLISHED[edm2.published(shapes) or "edm2-img512-s"]
    times = dict(time_distribution="log_normal", **known["objective"])
    return dict(
        data=_data(outside.image_size, outside.channels, fields),
        conditioners=LABEL,
        model=dict(name="edm2_unet", dropout=known["dropout"], **fields),
        process=dict(name="edm", **known["process"]),
        objective=dict(name="uncertainty", channels=outside.uncertainty_channels, condition_dropout=0.0) | times,
        sample=_sample("edm", dict(name="karras"), 32),
    )


def _data(size: int, channels: int, fields: dict[str, Any]) -> dict[str, Any]:
    return data_group(size, channels, fields.pop("num_classes"))


def _ddpm(**fields: Any) -> dict[str, Any]:
    return dict(name="ddpm", schedule="linear", steps=1000, prediction="eps") | fields


def _adm_process(known: Mapping[str, Any], hints: Hints) -> dict[str, Any]:
    given = {"schedule": hints["schedule"]} if hints.get("schedule") else {}
    return _ddpm(**dict(known.get("process", {})) | given)


def _variance(fields: Mapping[str, Any]) -> str:
    return "learned_range" if fields["learn_sigma"] else "fixed_large"


def _respaced(spacing: str) -> dict[str, Any]:
    return dict(name="respaced", spacing=spacing)


def _sample(
    solver: str, grid: dict[str, Any], steps: int, scale: float = 1.0, threshold: str | None = None
) -> dict[str, Any]:
    guidance = dict(name="classifier_free", scale=scale, interval=None)
    how = dict(steps=steps, solver=dict(name=solver), grid=grid, guidance=guidance, threshold=threshold)
    return dict(every_steps=1000, classes=10, per_class=8) | how


def _size(known: Mapping[str, Any], hints: Hints) -> int:
    return hints.get("image_size") or known.get("image_size", IMAGE_SIZE)


def _two_images(data: Any) -> tuple[jax.ShapeDtypeStruct, ...]:
    return (jax.ShapeDtypeStruct((1, data.image_size, data.image_size, data.channels), np.float32),) * 2


def _text(describe: autoencoders.Describe, rename: Any, tensor_name: Any, **fields: Any) -> Source:
    """A text encoder, which is called with ids and a mask."""
    inputs = (jax.ShapeDtypeStruct((1, 1), np.int32), jax.ShapeDtypeStruct((1, 1), np.bool_))
    fields |= dict(task="network", inputs=lambda data: inputs, half=True)
    return Source(describe, lambda model, size: rename(model), tensor_name=tensor_name, **fields)


def _latent_unet(source: str) -> Source:
    describe = functools.partial(_describe_latent_unet, source)
    return Source(describe, lambda model, size: rename_latent_unet(model), half=True)


def _autoencoder(describe: autoencoders.Describe, spelling: Spelling) -> Source:
    def names(model: Any, size: int) -> Rename:
        if model.patch_size != 1:
            raise UserError("model.patch_size", model.patch_size, "is not published; networks with 1 are")
        if model.encoder_layers not in (None, model.layers_per_block):
            raise UserError("model.encoder_layers", model.encoder_layers, "is not published; networks with None are")
        return rename_autoencoder(model, spelling)

    return Source(describe, names, tensor_name=autoencoders.tensor_name, task="autoencoder", half=True)


SOURCES = {
    "dit": Source(_describe_dit, lambda model, size: dit.rename(model), dit.constants),
    "sit": Source(_describe_sit, lambda model, size: dit.rename(model), dit.constants),
    "repa": Source(_describe_repa, lambda model, size: dit.rename(model), dit.constants, dit.without_projectors),
    "sd3": Source(
        _describe_sd3,
        lambda model, size: sd3.rename(model),
        tensor_name=sd3.tensor_name,
        half=True,
        spellings={sd3_diffusers.PATCHES: "sd3-diffusers"},
    ),
    "sd3-diffusers": Source(_describe_sd3_of_diffusers, lambda model, size: sd3_diffusers.rename(model), half=True),
    "adm": Source(_describe_adm, lambda model, size: rename_unet(model)),
    "adm-superres": Source(_describe_adm_superres, lambda model, size: rename_unet(model)),
    "adm-classifier": Source(_describe_adm_classifier, lambda model, size: rename_classifier(model), task="classifier"),
    **{name: _latent_unet(name) for name in latent_unets.PUBLISHED},
    "edm2": Source(_describe_edm2, edm2.rename, uncertain=True, latents=edm2.LATENTS),
    **{name: _autoencoder(*kind) for name, kind in autoencoders.AUTOENCODERS.items()},
    "taesd": Source(autoencoders.describe_tiny, lambda model, size: rename_taesd(model), task="autoencoder"),
    "lpips": Source(
        autoencoders.describe_lpips,
        lambda model, size: rename_lpips,
        lambda model, size: lpips_constants(),
        lpips_tensor_name,
        task="network",
        inputs=_two_images,
    ),
    "clip-text": _text(
        text_encoders.describe_clip_text,
        text_names.rename_clip_text,
        text_names.clip_text_tensor,
        constants=lambda model, size: text_names.position_ids(model),
    ),
    "t5": _text(text_encoders.describe_t5, text_names.rename_t5, text_names.t5_tensor, aliases=text_names.T5_ALIASES),
    "minilm": _text(
        text_encoders.describe_bert,
        text_names.rename_bert,
        text_names.bert_tensor,
        constants=lambda model, size: text_names.position_ids(model),
    ),
}
MODELS = {
    **{"dit": "dit", "mmdit": "sd3", "adm_unet": "adm", "adm_classifier": "adm-classifier", "edm2_unet": "edm2"},
    **{"autoencoder_kl": "vae", "vq_model": "vq", "autoencoder_tiny": "taesd", "lpips": "lpips"},
    "latent_unet": "sd15",  # all kinds have the same names
    **{"clip_text": "clip-text", "t5_encoder": "t5", "bert": "minilm"},
}


def spelling(source: str, names: Iterable[str]) -> str:
    """The kind that reads these names, where a network was published under several."""
    spellings = SOURCES[source].spellings
    return next((kind for own, kind in spellings.items() for name in names if name.endswith(own)), source)


def configuration(source: str, shapes: Shapes, hints: Hints) -> dict[str, Any]:
    """The configuration of the run that tensors of these shapes make, without the groups of training.

    Raises:
        UserError: they are not such a network's, or neither they nor the hints decide a field.
    """
    given = {name: value for name, value in hints.items() if value is not None}
    try:
        groups = SOURCES[source].describe(shapes, given)
    except UserError:
        raise
    except (ArithmeticError, LookupError, TypeError, ValueError) as e:  # a tensor with fewer or more axes
        what = f"holds tensors whose shapes are not those of a network of the kind {source}: {e}"
        raise UserError(CHECKPOINT, message=what) from e
    groups["model"].setdefault("dtype", "float32")
    return {"task": SOURCES[source].task, "seed": 0, "first_stage": {"name": "image"}, "frozen": {}} | groups


def rename(source: str, model: Any, image_size: int) -> Rename:
    """Where each parameter of a network for images of this size lies in the published weights.

    Raises:
        UserError: the published network is another.
    """
    uncertain = SOURCES[source].uncertain
    if isinstance(model, Uncertain) != uncertain:
        needed = "must be uncertainty: the published network has" if uncertain else "has, and this network has not,"
        raise UserError("objective.name", message=f"{needed} a head for the loss that it expects")
    return SOURCES[source].rename(model, image_size)


def split_prefix(names: Any, source: str) -> tuple[str, dict[str, str]]:
    """What all names of this network begin with, and {name in the file: name in the network}.

    What all names of the file share, such as "module." or "_orig_mod.", comes from how the network was wrapped.

    Raises:
        UserError: two tensors have the same name in the network.
    """
    shared = os.path.commonprefix(list(names)).rpartition(".")
    start = len(shared[0]) + len(shared[1])
    own = {name: SOURCES[source].tensor_name(name[start:]) for name in names}
    kept = {name: inner for name, inner in own.items() if inner is not None}
    if len(set(kept.values())) < len(kept):
        twice = next(name for name, inner in kept.items() if name != inner and inner in kept)
        what = f"holds both {twice} and {kept[twice]}; write a file with one of them"
        raise UserError(CHECKPOINT, message=what)
    prefixes = {name.removesuffix(inner) for name, inner in kept.items() if name.endswith(inner)}
    return (prefixes.pop() if len(prefixes) == 1 else ""), kept
