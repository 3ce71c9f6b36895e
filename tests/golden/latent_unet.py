"""The cases of latent diffusion's U-Nets: diffusers' UNet2DConditionModel, alone and as the x4 upscaler."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from archirf_jax.interop.latent_unet_names import rename_latent_unet
from archirf_jax.interop.weights import to_params
from archirf_jax.models.latent_unet import LatentUNet
from archirf_jax.processes.ddpm import DDPM
from tests.golden.adm import nhwc
from tests.golden.case import Case, UnsupportedSource, choice, programs, settings

CROSS, PLAIN = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D"), ("DownBlock2D", "UpBlock2D")
# What the reference's constructor assumes where a case names no value.
DEFAULTS: dict[str, Any] = dict(
    sample_size=None,
    in_channels=4,
    out_channels=4,
    down_block_types=(*(CROSS[0],) * 3, PLAIN[0]),
    up_block_types=(PLAIN[1], *(CROSS[1],) * 3),
    block_out_channels=(320, 640, 1280, 1280),
    layers_per_block=2,
    transformer_layers_per_block=1,
    attention_head_dim=8,
    cross_attention_dim=1280,
    only_cross_attention=False,
    norm_num_groups=32,
    use_linear_projection=False,
    resnet_time_scale_shift="default",
    num_class_embeds=None,
    addition_embed_type=None,
    addition_time_embed_dim=None,
    projection_class_embeddings_input_dim=None,
    addition_embed_type_num_heads=64,
    dropout=0.0,
)
# Settings of which one value is this network's.
FIXED: dict[str, Any] = dict(
    act_fn="silu",
    norm_eps=1e-5,
    center_input_sample=False,
    flip_sin_to_cos=True,
    freq_shift=0,
    downsample_padding=1,
    mid_block_scale_factor=1,
    num_attention_heads=None,
    mid_block_type="UNetMidBlock2DCrossAttn",
    class_embed_type=None,
    encoder_hid_dim=None,
    encoder_hid_dim_type=None,
    dual_cross_attention=False,
    upcast_attention=False,
    resnet_skip_time_act=False,
    resnet_out_scale_factor=1.0,
    time_embedding_type="positional",
    time_embedding_dim=None,
    time_embedding_act_fn=None,
    timestep_post_act=None,
    time_cond_proj_dim=None,
    conv_in_kernel=3,
    conv_out_kernel=3,
    attention_type="default",
    class_embeddings_concat=False,
    mid_block_only_cross_attention=None,
    cross_attention_norm=None,
    reverse_transformer_layers_per_block=None,
)

SCHEDULER = dict(num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02, beta_schedule="linear")
SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear"}


def run(case: Case) -> dict[str, np.ndarray]:
    """The network's answers to each text of the case; an upscaler's to a small image that is noised first."""
    given = case.hyperparameters
    if "unet" in given and "low_res_scheduler" not in given:
        raise UnsupportedSource(
            f"unsupported system of {', '.join(given)}; supported: an upscaler's, with low_res_scheduler"
        )
    condition: dict[str, np.ndarray] = {}
    outputs: dict[str, np.ndarray] = {}
    if "unet" in given:
        low_res = _noised(given, case)
        outputs["low_res_noised"] = np.moveaxis(low_res, -1, 1)
        condition = {"low_res": low_res, "noise_level": case.inputs["noise_level"].astype(np.int32)}
    if "time_ids" in case.inputs:
        condition |= {"pooled": case.inputs["text_embeds"], "size": case.inputs["time_ids"]}
    if "class_labels" in case.inputs:
        condition |= {"noise_level": case.inputs["class_labels"].astype(np.int32)}
    model = network(
        given.get("unet", given),
        low_res="unet" in given,
        numbers=case.inputs.get("time_ids", np.zeros((1, 6))).shape[1],
    )
    x, t = nhwc(case.inputs["x"]), case.inputs["t"].astype(np.float32)
    texts = _texts(case, model)
    text, copies = next(iter(texts.values())), len(texts)
    if copies > 1:  # one program, in which padding is hidden
        text = _together(list(texts.values()))
        x, t, condition = jax.tree.map(lambda leaf: np.concatenate([leaf] * copies), (x, t, condition))
    init, apply = programs(model)
    like = init.eval_shape(jax.random.key(0), x, t, condition | text)["params"]
    params = to_params(case.params, like, rename_latent_unet(model))
    answers = np.moveaxis(np.asarray(apply({"params": params}, x, t, condition | text)), -1, 1)
    return outputs | dict(zip(texts, np.split(answers, copies), strict=True))


def network(hyperparameters: dict[str, Any], low_res: bool = False, numbers: int = 6) -> LatentUNet:
    """The network of a reference constructor's arguments, whose condition "size" has so many numbers."""
    given = settings("hyper-parameter", hyperparameters, DEFAULTS | FIXED)
    for name, value in FIXED.items():
        choice(name, given[name], {value: value})
    depths, middle = _depths(given)
    size = given["addition_time_embed_dim"] if _micro_conditioned(given) else None
    vector = given["projection_class_embeddings_input_dim"]
    return LatentUNet(
        block_out_channels=tuple(given["block_out_channels"]),
        layers_per_block=_each(given["layers_per_block"]),
        transformer_depth=depths,
        middle_depth=middle,
        num_heads=_each(given["attention_head_dim"]),
        only_cross_attention=_each(given["only_cross_attention"]),
        use_linear_projection=given["use_linear_projection"],
        context_width=given["cross_attention_dim"],
        norm_num_groups=given["norm_num_groups"],
        scale_shift_norm=choice(
            "resnet_time_scale_shift", given["resnet_time_scale_shift"], {"default": False, "scale_shift": True}
        ),
        pooled_width=vector - numbers * size if size else None,
        size_width=size,
        size_numbers=numbers,
        noise_levels=given["num_class_embeds"],
        low_res=low_res,
        out_channels=given["out_channels"],
    )


def _micro_conditioned(given: dict[str, Any]) -> bool:
    return bool(choice("addition_embed_type", given["addition_embed_type"], {None: False, "text_time": True}))


def _depths(given: dict[str, Any]) -> tuple[tuple[int, ...], int]:
    """Transformer blocks of each level, 0 where its kind has none, and of the middle."""
    down, up = given["down_block_types"], given["up_block_types"]
    attends = [choice("down_block_types", kind, {CROSS[0]: True, PLAIN[0]: False}) for kind in down]
    upwards = [choice("up_block_types", kind, {CROSS[1]: True, PLAIN[1]: False}) for kind in up]
    if upwards != attends[::-1]:
        raise UnsupportedSource(f"unsupported up_block_types {up!r}: they do not mirror down_block_types")
    depths = _each(given["transformer_layers_per_block"])
    depths = depths if isinstance(depths, tuple) else (depths,) * len(down)
    return tuple(n if there else 0 for n, there in zip(depths, attends, strict=True)), depths[-1]


def _each(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else value


def _texts(case: Case, model: LatentUNet) -> dict[str, dict[str, np.ndarray]]:
    """Output -> the text that it answers."""
    texts = {"y": {"tokens": case.inputs["encoder_hidden_states"]}}
    if "encoder_hidden_states_long" in case.inputs:
        texts["y_long"] = {"tokens": case.inputs["encoder_hidden_states_long"]}
    if "encoder_attention_mask" in case.inputs:
        only = model.only_cross_attention
        if any(only) if isinstance(only, tuple) else only:
            # The reference hides tokens from the second attention alone.
            raise UnsupportedSource("unsupported input 'encoder_attention_mask' with only_cross_attention")
        mask = case.inputs["encoder_attention_mask"].astype(bool)
        masked = [name for name in case.outputs if name.endswith("_masked")]
        texts |= {name: texts[name.removesuffix("_masked")] | {"mask": mask} for name in masked}
    return {name: text for name, text in texts.items() if name in case.outputs}


def _together(texts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Texts of any lengths as one batch of the longest."""
    longest = max(text["tokens"].shape[1] for text in texts)
    found: dict[str, list[np.ndarray]] = {"tokens": [], "mask": []}
    for text in texts:
        tokens, mask = text["tokens"], text.get("mask", np.ones(text["tokens"].shape[:2], bool))
        padding = (0, 0), (0, longest - tokens.shape[1])
        found["tokens"].append(np.pad(tokens, (*padding, (0, 0)), constant_values=100))
        found["mask"].append(np.pad(mask, padding))
    return {name: np.concatenate(arrays) for name, arrays in found.items()}


def _noised(given: dict[str, Any], case: Case) -> np.ndarray:
    """The small image (B, h, w, C) under noise of its level."""
    choice("upsample", given.get("upsample", False), {False: False})
    scheduler = settings("setting of low_res_scheduler", given["low_res_scheduler"], SCHEDULER)
    process = DDPM(
        schedule=choice("beta_schedule", scheduler["beta_schedule"], SCHEDULES),
        steps=scheduler["num_train_timesteps"],
        beta_start=scheduler["beta_start"],
        beta_end=scheduler["beta_end"],
    )
    t = jnp.asarray((case.inputs["noise_level"] + 1) / process.steps, jnp.float32)
    low_res, noise = (jnp.asarray(nhwc(case.inputs[name])) for name in ("low_res", "noise"))
    return np.asarray(process.noised(low_res, noise, t))
