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
JOINED = ("sdxl", "sd3")  # kinds with several encoders
FLOWS = ("sd3",)
SIZED = {"sdxl": {}, "sdxl-refiner": dict(score=6.0, null_score=2.5)}  # what is taken besides sizes
SCHEDULER, LOW_RES_SCHEDULER = "scheduler", "low_res_scheduler"
T5, T5_LENGTH = "text_3", 256  # the encoder whose tokens follow CLIP's, and how many its pipeline gives


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
    _check_widths(source, config["model"], texts)
    prefixes = {name: f"{name}_" if source in JOINED else "" for name in texts}
    lengths = {name: T5_LENGTH if name == T5 else each["tokenizer"]["length"] for name, each in texts.items()}
    fields: dict[str, Array] = {f"{prefixes[name]}ids": ((lengths[name],), "int32") for name in texts}
    if config["model"].get("low_res"):
        fields["low_res"] = ((size // factor, size // factor, _low_res_channels(config)), "float32")
    if config["model"].get("inpaint"):
        fields["hole"] = ((size, size, 1), "float32")
    process, sample = _noise(source, schedulers[SCHEDULER], size // factor // config["model"].get("patch_size", 1))
    return dict(
        data=data_group(size, channels, 1) | dict(label_key=None, fields=_arrays(fields)),
        first_stage=dict(name="autoencoder"),
        conditioners={"text": _text(source, texts, index, config["model"])} | _others(source, config, schedulers),
        process=process | {name: given[name] for name in ("prediction",) if name in given},
        sample=config["sample"] | sample,
    )


def _noise(source: str, settings: Mapping[str, Any], side: int) -> tuple[Group, Group]:
    """The group `process` and fields of `sample`; `side` is that of an image in tokens."""
    if source in FLOWS:
        flow = scheduler_settings.flow_process_fields(settings)
        return flow, scheduler_settings.flow_sample_fields(settings, side**2)
    process = scheduler_settings.process_fields(settings)
    return process, scheduler_settings.sample_fields(settings, FIRST_STEP.get(source))


def _image(config: Mapping[str, Any], autoencoder: Mapping[str, Any], given: Mapping[str, Any]) -> tuple[int, int, int]:
    """(pixels a side of the images, their channels, how many times smaller the latents are)."""
    latents, channels = config["data"]["channels"], autoencoder["latent_channels"]
    if latents != channels:
        what = f"has latents of {channels} channels, and the network takes {latents}; give the parts of one system"
        raise UserError("checkpoint", "vae", what)
    factor = 2 ** (len(autoencoder["block_out_channels"]) - 1)
    size = given.get("image_size") or config["data"]["image_size"] * factor
    if size % factor:
        raise UserError(
            "data.image_size", size, f"must be a multiple of {factor}, as latents are so many times smaller"
        )
    return size, autoencoder["out_channels"], factor


def _check_widths(source: str, model: Mapping[str, Any], texts: Configs) -> None:
    """Raise a UserError unless the network takes the tokens and pooled texts that the encoders give."""
    joined = {name: each["model"] for name, each in texts.items() if name != T5}
    width = sum(each["hidden_size"] for each in joined.values())
    # What SD3 lacks is filled up with zeros.
    _check("text encoders", "tokens", width, model["context_width"], at_most=source in FLOWS)
    if T5 in texts:
        _check("text_encoder_3", "tokens", texts[T5]["model"]["hidden_size"], model["context_width"])
    if model["pooled_width"] is not None:
        giving = list(joined) if source in FLOWS else list(joined)[-1:]
        pooled = sum(joined[name]["projection_size"] or 0 for name in giving)
        _check("text encoders", "pooled texts", pooled, model["pooled_width"])


def _check(part: str, what: str, given: int, taken: int | None, at_most: bool = False) -> None:
    if given != taken and not (at_most and taken is not None and given < taken):
        message = f"of the pipeline gives {what} of {given} channels, and the network takes {taken}"
        raise UserError("checkpoint", part, f"{message}; give the parts of one system")


def _text(source: str, texts: Configs, index: Mapping[str, Any], model: Mapping[str, Any]) -> Group:
    """The conditioner of texts; padding is seen, as the published networks were trained."""
    if source in FLOWS:
        return _flow_text(texts, model["context_width"])
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


def _flow_text(texts: Configs, width: int) -> Group:
    """CLIP's tokens side by side, T5's after them, or zeros where it is left out (Esser et al. 2024, Sec. 4)."""
    seen = dict(masked=False, null="empty")
    clip = dict(tokens="penultimate", pooled="projected") | seen
    parts = {name: seen | dict(length=T5_LENGTH) if name == T5 else clip for name in texts}
    following, zeros = ((T5,), 0) if T5 in texts else ((), T5_LENGTH)
    return dict(name="joined_texts", parts=parts, following=following, width=width, zeros=zeros)


def _others(source: str, config: Mapping[str, Any], schedulers: Mapping[str, Mapping[str, Any]]) -> Group:
    """Conditioners of what is not a text."""
    groups: Group = {}
    if source in SIZED:
        groups["size"] = dict(name="size", **SIZED[source])
    if config["model"].get("inpaint"):
        groups["inpaint"] = dict(name="inpainting")
    if config["model"].get("low_res"):
        process = scheduler_settings.process_fields(schedulers[LOW_RES_SCHEDULER])
        names = ("schedule", "steps", "beta_start", "beta_end")
        groups["low_res"] = dict(name="low_res") | {name: process[name] for name in names if name in process}
    return groups


def _low_res_channels(config: Mapping[str, Any]) -> int:
    return int(config["conditioners"]["low_res"]["shapes"]["low_res"][-1])


def _arrays(fields: Mapping[str, Array]) -> Group:
    """Fields that no set gives, for their shapes: a batch has them of prompts and files."""
    return {name: dict(name="array", feature=name, shape=shape, dtype=dtype) for name, (shape, dtype) in fields.items()}
