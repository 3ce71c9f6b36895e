"""What the file config.json of a part of a published system says, and where its weights contradict it."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from archirf_jax.errors import UserError
from archirf_jax.interop import published_folder

Settings = Mapping[str, Any]
CROSS, PLAIN = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D"), ("DownBlock2D", "UpBlock2D")
LARGEST_ID = 2  # older settings have this id for the end of texts, and it is then the largest in a text


class Part(NamedTuple):
    """What is read of the settings of a kind of network.

    Attributes:
        hints: settings -> what shapes do not show, by the names that `interop.sources` takes.
        said: field of our network -> the setting that says it as well.
        fixed: setting -> the values that our network stands for.
    """

    hints: Callable[[Settings], dict[str, Any]]
    said: Mapping[str, str]
    fixed: Mapping[str, tuple[Any, ...]]


def beside(source: str, path: pathlib.Path) -> dict[str, Any]:
    """The settings in the folder of a network's weights; {} for a file, and for kinds whose settings are not read.

    Raises:
        UserError: they are damaged.
    """
    found = published_folder.settings(path / published_folder.SETTINGS) if source in PARTS else {}
    inner = found.get("text_config")  # of CLIP as a whole, whose other half encodes images
    return found | inner if isinstance(inner, dict) else found


def hints(source: str, settings: Settings) -> dict[str, Any]:
    """What shapes do not show, of the settings of a network.

    Raises:
        UserError: they are of a network that this project does not have.
    """
    if not settings:
        return {}
    part = PARTS[source]
    for name, values in part.fixed.items():
        if name in settings and _plain(settings[name]) not in values:
            allowed = " or ".join(map(repr, values))
            raise UserError("checkpoint", f"{name}={settings[name]!r}", f"in config.json must be {allowed}")
    return {name: value for name, value in part.hints(settings).items() if value is not None}


def check_said(source: str, settings: Settings, fields: Mapping[str, Any]) -> None:
    """Raise a UserError where the weights' shapes contradict the settings.

    Args:
        source: kind of the weights.
        settings: of its config.json.
        fields: of the network, as its shapes are.
    """
    if not settings:
        return
    said = {field: settings[name] for field, name in PARTS[source].said.items() if settings.get(name) is not None}
    if PARTS[source] is _UNET and "down_block_types" in settings:
        said["transformer_depth"] = _depths(settings)
    for field, value in said.items():
        if fields.get(field) is not None and not _same(_plain(value), _plain(fields[field])):
            what = f"in config.json, and the tensors are those of {_plain(fields[field])!r}; give files of one network"
            raise UserError("checkpoint", f"{PARTS[source].said.get(field, field)}={_plain(value)!r}", what)


def _unet_hints(settings: Settings) -> dict[str, Any]:
    size = settings.get("sample_size")
    only = settings.get("only_cross_attention")
    return {
        # The setting of this name is the number of heads, not their width.
        "num_heads": _plain(settings.get("num_attention_heads") or settings.get("attention_head_dim")),
        "norm_num_groups": settings.get("norm_num_groups"),
        "size_width": settings.get("addition_time_embed_dim"),
        "image_size": max(size) if isinstance(size, list) else size,
        "only_cross_attention": _plain(only),
    }


def _autoencoder_hints(settings: Settings) -> dict[str, Any]:
    names = ("scaling_factor", "shift_factor", "norm_num_groups", "latents_mean", "latents_std")
    return {name: _plain(settings.get(name)) for name in names}


def _text_hints(settings: Settings) -> dict[str, Any]:
    end = settings.get("eos_token_id")
    return {
        "num_heads": settings.get("num_attention_heads"),
        "activation": settings.get("hidden_act"),
        "end_id": None if end == LARGEST_ID else end,
    }


def _transformer_hints(settings: Settings) -> dict[str, Any]:
    return {"num_heads": settings.get("num_attention_heads"), "image_size": settings.get("sample_size")}


def _depths(settings: Settings) -> tuple[int, ...]:
    """Transformer blocks of each level, 0 where its kind has none."""
    kinds, depth = settings["down_block_types"], settings.get("transformer_layers_per_block", 1)
    depths = depth if isinstance(depth, list) else [depth] * len(kinds)
    return tuple(n if kind == CROSS[0] else 0 for kind, n in zip(kinds, depths, strict=False))


def _same(said: Any, found: Any) -> bool:
    """Whether two values are equal, where one value may stand for that of all levels."""
    if isinstance(said, tuple) == isinstance(found, tuple):
        return bool(said == found)
    many, one = (said, found) if isinstance(said, tuple) else (found, said)
    return all(each == one for each in many)


def _plain(value: Any) -> Any:
    return tuple(_plain(each) for each in value) if isinstance(value, list | tuple) else value


_UNET = Part(
    _unet_hints,
    {
        **{"block_out_channels": "block_out_channels", "layers_per_block": "layers_per_block"},
        **{"context_width": "cross_attention_dim", "use_linear_projection": "use_linear_projection"},
        "noise_levels": "num_class_embeds",
    },
    {
        **{"act_fn": ("silu",), "norm_eps": (1e-5,), "center_input_sample": (False,), "flip_sin_to_cos": (True,)},
        **{"freq_shift": (0,), "downsample_padding": (1,), "mid_block_scale_factor": (1,)},
        **{"mid_block_type": ("UNetMidBlock2DCrossAttn",), "mid_block_only_cross_attention": (None, False)},
        **{"addition_embed_type": (None, "text_time"), "class_embed_type": (None,), "encoder_hid_dim_type": (None,)},
        **{"dual_cross_attention": (False,), "resnet_skip_time_act": (False,), "resnet_out_scale_factor": (1.0,)},
        **{"time_embedding_type": ("positional",), "timestep_post_act": (None,), "time_cond_proj_dim": (None,)},
        **{"attention_type": ("default",), "cross_attention_norm": (None,), "class_embeddings_concat": (False,)},
    },
)
_AUTOENCODER = Part(
    _autoencoder_hints,
    {
        name: name
        for name in ("block_out_channels", "layers_per_block", "latent_channels", "out_channels")
        + ("use_quant_conv", "use_post_quant_conv", "mid_block_add_attention")
    },
    {"act_fn": ("silu",)},
)
_TEXT = Part(
    _text_hints,
    {
        **{"vocab_size": "vocab_size", "hidden_size": "hidden_size", "depth": "num_hidden_layers"},
        **{"mlp_size": "intermediate_size", "max_length": "max_position_embeddings"},
        "projection_size": "projection_dim",
    },
    {"layer_norm_eps": (1e-5,)},
)
_T5 = Part(
    lambda settings: {},
    {
        **{"vocab_size": "vocab_size", "hidden_size": "d_model", "depth": "num_layers", "num_heads": "num_heads"},
        **{"head_size": "d_kv", "mlp_size": "d_ff", "buckets": "relative_attention_num_buckets"},
    },
    {
        **{"feed_forward_proj": ("gated-gelu", "relu"), "layer_norm_epsilon": (1e-6,)},
        "relative_attention_max_distance": (128,),
    },
)
_TRANSFORMER = Part(
    _transformer_hints,
    {
        **{"patch_size": "patch_size", "depth": "num_layers", "num_heads": "num_attention_heads"},
        **{"context_width": "joint_attention_dim", "pooled_width": "pooled_projection_dim"},
        **{"hidden_size": "caption_projection_dim", "position_size": "pos_embed_max_size"},
        "dual_layers": "dual_attention_layers",
    },
    {"qk_norm": (None, "rms_norm")},
)
PARTS = {name: _UNET for name in ("sd15", "sd2", "sdxl", "sdxl-refiner", "sd-upscaler")}
PARTS |= {"vae": _AUTOENCODER, "clip-text": _TEXT, "t5": _T5, "sd3": _TRANSFORMER}
