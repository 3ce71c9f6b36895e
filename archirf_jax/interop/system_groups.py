"""The groups of a configuration that say how the parts of a published system belong together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from archirf_jax.errors import UserError
from archirf_jax.interop import scheduler_settings
from archirf_jax.interop.imported_data import data_group

Group = dict[str, Any]
Array = tuple[tuple[int, ...], str]  # shape and type of an array of one example
Configs = Mapping[str, Mapping[str, Any]]  # of the frozen runs, by name
# The pipelines of these kinds start at step 1, whatever their scheduler says.
FIRST_STEP = {"sd15": 1, "sd2": 1}
JOINED = ("sdxl",)  # kinds with two encoders
SIZED = {"sdxl": {}, "sdxl-refiner": dict(score=6.0, null_score=2.5)}  # what is taken besides sizes
SCHEDULER, LOW_RES_SCHEDULER = "scheduler", "low_res_scheduler"


def describe(
    source: str,
    config: Mapping[str, Any],
    frozen: Configs,
    schedulers: Mapping[str, Mapping[str, Any]],
    index: Mapping[str, Any],
    given: Mapping[str, Any],
) -> Group:
    """The groups data, first_stage, conditioners, process and sample of a system.

    Args:
        source: its kind.
        config: of the network alone, as `sources.configuration` makes it.
        frozen: configurations of the autoencoder and the text encoders.
        schedulers: settings of "scheduler" and "low_res_scheduler", {} where the folder has none.
        index: the settings of the whole pipeline.
        given: hints; image_size is that of the images, and prediction wins over the scheduler's.

    Raises:
        UserError: the parts do not fit each other.
    """
    size, channels, factor = _image(config, frozen["autoencoder"]["model"], given)
    texts = {name: each for name, each in frozen.items() if "tokenizer" in each}
    _check_widths(config["model"], texts)
    conditioners = {"text": _text(source, texts, index)} | _others(source, config, schedulers)
    prefixes = [f"{name}_" for name in texts] if source in JOINED else [""]
    lengths = [each["tokenizer"]["length"] for each in texts.values()]
    fields: dict[str, Array] = {f"{prefix}ids": ((n,), "int32") for prefix, n in zip(prefixes, lengths, strict=True)}
    if config["model"]["low_res"]:
        fields["low_res"] = ((size // factor, size // factor, _low_res_channels(config)), "float32")
    if config["model"]["inpaint"]:
        fields["hole"] = ((size, size, 1), "float32")
    process = scheduler_settings.process_fields(schedulers[SCHEDULER])
    return dict(
        data=data_group(size, channels, 1) | dict(label_key=None, fields=_arrays(fields)),
        first_stage=dict(name="autoencoder"),
        conditioners=conditioners,
        process=process | {name: given[name] for name in ("prediction",) if name in given},
        sample=config["sample"] | scheduler_settings.sample_fields(schedulers[SCHEDULER], FIRST_STEP.get(source)),
    )


def _image(config: Mapping[str, Any], autoencoder: Mapping[str, Any], given: Mapping[str, Any]) -> tuple[int, int, int]:
    """(pixels a side of the images, their channels, how many times smaller the latents are)."""
    latents, channels = config["data"]["channels"], autoencoder["latent_channels"]
    if latents != channels:
        what = f"has latents of {channels} channels, and the U-Net takes {latents}; give the parts of one system"
        raise UserError("checkpoint", "vae", what)
    factor = 2 ** (len(autoencoder["block_out_channels"]) - 1)
    size = given.get("image_size") or config["data"]["image_size"] * factor
    if size % factor:
        raise UserError(
            "data.image_size", size, f"must be a multiple of {factor}, as latents are so many times smaller"
        )
    return size, autoencoder["out_channels"], factor


def _check_widths(model: Mapping[str, Any], texts: Configs) -> None:
    width = sum(each["model"]["hidden_size"] for each in texts.values())
    if width != model["context_width"]:
        what = f"give tokens of {width} channels, and the U-Net takes {model['context_width']}; give the parts of one "
        raise UserError("checkpoint", "text encoders", f"{what}system")
    if model["pooled_width"] is None:
        return
    pooled = list(texts.values())[-1]["model"]["projection_size"]
    if pooled != model["pooled_width"]:
        what = f"gives pooled texts of {pooled} channels, and the U-Net takes {model['pooled_width']}"
        raise UserError("checkpoint", "text_encoder_2", f"{what}; give the parts of one system")


def _text(source: str, texts: Configs, index: Mapping[str, Any]) -> Group:
    """The conditioner of texts; padding is seen, as the published networks were trained."""
    if source not in SIZED:
        return dict(name="text", run="text", masked=False, null="empty")
    null = "zeros" if index.get("force_zeros_for_empty_prompt", True) else "empty"
    fields: Group = dict(tokens="penultimate", masked=False, null=null)
    pooled = dict(pooled="projected")
    if source not in JOINED:
        return dict(name="text", run="text") | fields | pooled
    last = list(texts)[-1]
    parts = {name: fields | (pooled if name == last else {}) for name in texts}
    return dict(name="joined_texts", parts=parts)


def _others(source: str, config: Mapping[str, Any], schedulers: Mapping[str, Mapping[str, Any]]) -> Group:
    """Conditioners of what is not a text."""
    groups: Group = {}
    if source in SIZED:
        groups["size"] = dict(name="size", **SIZED[source])
    if config["model"]["inpaint"]:
        groups["inpaint"] = dict(name="inpainting")
    if config["model"]["low_res"]:
        process = scheduler_settings.process_fields(schedulers[LOW_RES_SCHEDULER])
        names = ("schedule", "steps", "beta_start", "beta_end")
        groups["low_res"] = dict(name="low_res") | {name: process[name] for name in names if name in process}
    return groups


def _low_res_channels(config: Mapping[str, Any]) -> int:
    return int(config["conditioners"]["low_res"]["shapes"]["low_res"][-1])


def _arrays(fields: Mapping[str, Array]) -> Group:
    """Fields that no set gives, for their shapes: a batch has them of prompts and files."""
    return {name: dict(name="array", feature=name, shape=shape, dtype=dtype) for name, (shape, dtype) in fields.items()}
