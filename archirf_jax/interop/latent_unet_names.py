"""diffusers' UNet2DConditionModel: where the parameters of latent diffusion's U-Net lie in the published weights.

Levels are numbered from the finest on the way down, and from the coarsest on the way up.
"""

from __future__ import annotations

from collections.abc import Iterator

from archirf_jax.interop.weights import CONV, LINEAR, SAME, Layout, Path, Rename
from archirf_jax.models.latent_unet import LatentUNet
from archirf_jax.models.latent_unet_levels import levels_of

Place = tuple[Path, tuple[str, Layout]]  # our layer -> the published one, the layout of its kernel

ENDS: dict[Path, tuple[str, Layout]] = {
    ("input",): ("conv_in", CONV),
    ("time_embedding", "hidden"): ("time_embedding.linear_1", LINEAR),
    ("time_embedding", "out"): ("time_embedding.linear_2", LINEAR),
    ("size_embedding", "hidden"): ("add_embedding.linear_1", LINEAR),
    ("size_embedding", "out"): ("add_embedding.linear_2", LINEAR),
    ("noise_embedding",): ("class_embedding", SAME),
    ("norm",): ("conv_norm_out", SAME),
    ("output",): ("conv_out", CONV),
}
BLOCK: dict[str, tuple[str, Layout]] = {
    "norm_in": ("norm1", SAME),
    "conv_in": ("conv1", CONV),
    "embedding_projection": ("time_emb_proj", LINEAR),
    "norm_out": ("norm2", SAME),
    "conv_out": ("conv2", CONV),
    "skip": ("conv_shortcut", CONV),
}
ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "out": "to_out.0"}
TRANSFORMER: dict[Path, tuple[str, Layout]] = {
    **{("self_attention", ours): (f"attn1.{theirs}", LINEAR) for ours, theirs in ATTENTION.items()},
    **{("cross_attention", ours): (f"attn2.{theirs}", LINEAR) for ours, theirs in ATTENTION.items()},
    **{("norm_self",): ("norm1", SAME), ("norm_cross",): ("norm2", SAME), ("norm_perceptron",): ("norm3", SAME)},
    **{("perceptron", "hidden"): ("ff.net.0.proj", LINEAR), ("perceptron", "out"): ("ff.net.2", LINEAR)},
}


def rename_latent_unet(model: LatentUNet) -> Rename:
    """Where the parameters of `model` lie in the published `state_dict`."""
    places = ENDS | dict(_levels(model))

    def find(path: Path) -> tuple[str, Layout]:
        *layer, leaf = path
        name, layout = places[tuple(layer)]
        if leaf == "kernel":
            return f"{name}.weight", layout
        return f"{name}.{'bias' if leaf == 'bias' else 'weight'}", SAME

    return find


def _levels(model: LatentUNet) -> Iterator[Place]:
    levels = levels_of(model)
    for number, level in enumerate(levels):
        for way, theirs in (("down", number), ("up", len(levels) - 1 - number)):
            for i in range(level.blocks + (way == "up")):
                where = f"{way}_blocks.{theirs}"
                yield from _block(f"{way}_{number}_block_{i}", f"{where}.resnets.{i}")
                yield from _transformer(model, f"{way}_{number}_attention_{i}", f"{where}.attentions.{i}", level.depth)
            resample = f"{way}_blocks.{theirs}.{way}samplers.0.conv"
            yield (f"{way}_{number}_resample",), (resample, CONV)
    for i in range(2):
        yield from _block(f"middle_block_{i}", f"mid_block.resnets.{i}")
    yield from _transformer(model, "middle_attention_0", "mid_block.attentions.0", model.middle_depth)


def _block(ours: str, theirs: str) -> Iterator[Place]:
    for layer, (name, layout) in BLOCK.items():
        yield (ours, layer), (f"{theirs}.{name}", layout)


def _transformer(model: LatentUNet, ours: str, theirs: str, depth: int) -> Iterator[Place]:
    projection = LINEAR if model.use_linear_projection else CONV
    yield (ours, "norm"), (f"{theirs}.norm", SAME)
    yield (ours, "project_in"), (f"{theirs}.proj_in", projection)
    yield (ours, "project_out"), (f"{theirs}.proj_out", projection)
    for k in range(depth):
        for layer, (name, layout) in TRANSFORMER.items():
            yield (ours, f"block_{k}", *layer), (f"{theirs}.transformer_blocks.{k}.{name}", layout)
