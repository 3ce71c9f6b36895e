"""Where the parameters of autoencoders with one body lie in published weights, by two spellings.

diffusers' AutoencoderKL and VQModel number the decoder's levels from the coarsest, CompVis' AutoencoderKL and
VQModel from the finest, and call attention's linear layers convolutions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from archirf_jax.interop.weights import CONV, LINEAR, SAME, Layout, Path, Rename
from archirf_jax.models.latents import ConvolutionalAutoencoder

Places = dict[Path, tuple[str, Layout]]  # our layer -> the published one, the layout of its kernel
POINT = Layout(lambda w: w[..., 0, 0].T, lambda w: w.T[..., None, None])  # 2-D convolution of size 1 <-> (in, out)


class Spelling(NamedTuple):
    """The names of one implementation.

    Attributes:
        block, attention: our layers of a residual block and of attention -> theirs.
        down, up: prefix of a level of the encoder and of the decoder, by its level from the finest or its number from
            the coarsest.
        blocks, attentions: of a level, before the number.
        smaller, larger: what changes the size, below its level.
        middle: our layers of the middle -> theirs.
        norm_out: the last norm of a half.
        linear: layout of attention's kernels.
    """

    block: dict[str, str]
    attention: dict[str, str]
    down: str
    up: str
    blocks: str
    attentions: str
    smaller: str
    larger: str
    middle: dict[str, str]
    norm_out: str
    linear: Layout


_BLOCK = {"norm_in": "norm1", "conv_in": "conv1", "norm_out": "norm2", "conv_out": "conv2"}
DIFFUSERS = Spelling(
    block=_BLOCK | {"skip": "conv_shortcut"},
    attention={"norm": "group_norm", "query": "to_q", "key": "to_k", "value": "to_v", "out": "to_out.0"},
    down="down_blocks.{level}",
    up="up_blocks.{number}",
    blocks="resnets",
    attentions="attentions",
    smaller="downsamplers.0.conv",
    larger="upsamplers.0.conv",
    middle={"block_0": "mid_block.resnets.0", "attention": "mid_block.attentions.0", "block_1": "mid_block.resnets.1"},
    norm_out="conv_norm_out",
    linear=LINEAR,
)
COMPVIS = Spelling(
    block=_BLOCK | {"skip": "nin_shortcut"},
    attention={"norm": "norm", "query": "q", "key": "k", "value": "v", "out": "proj_out"},
    down="down.{level}",
    up="up.{level}",
    blocks="block",
    attentions="attn",
    smaller="downsample.conv",
    larger="upsample.conv",
    middle={"block_0": "mid.block_1", "attention": "mid.attn_1", "block_1": "mid.block_2"},
    norm_out="norm_out",
    linear=POINT,
)
# Of a norm that the code modulates: ours -> diffusers'.
MODULATED = {"code_scale": "conv_y", "code_shift": "conv_b"}


def rename_autoencoder(model: ConvolutionalAutoencoder, spelling: Spelling = DIFFUSERS) -> Rename:
    """Where the parameters of `model` lie in the published weights."""
    places = dict(_places(model, spelling))
    spatial = getattr(model, "norm_type", "group") == "spatial"

    def find(path: Path) -> tuple[str, Layout]:
        *layer, leaf = path
        if layer == ["codebook"]:
            return "quantize.embedding.weight", SAME
        inside = layer.pop() if layer[-1] in MODULATED else None
        name, layout = places[tuple(layer)]
        if spatial and layer[0] == "decoder" and layer[-1].startswith("norm"):
            name = name.replace("group_norm", "spatial_norm")
            name, layout = f"{name}.{MODULATED[inside] if inside else 'norm_layer'}", CONV
        if leaf == "kernel":
            return f"{name}.weight", layout
        return f"{name}.{'bias' if leaf == 'bias' else 'weight'}", SAME

    return find


def _places(model: ConvolutionalAutoencoder, spelling: Spelling) -> Iterator[tuple[Path, tuple[str, Layout]]]:
    yield ("quant_conv",), ("quant_conv", CONV)
    yield ("post_quant_conv",), ("post_quant_conv", CONV)
    for half, way in (("encoder", "down"), ("decoder", "up")):
        for ours, theirs in {"conv_in": "conv_in", "norm_out": spelling.norm_out, "conv_out": "conv_out"}.items():
            yield (half, ours), (f"{half}.{theirs}", CONV)
        for ours, theirs in spelling.middle.items():
            yield from _inside(half, f"middle_{ours}", theirs, spelling)
        levels = len(model.block_out_channels)
        for level in range(levels):
            prefix = getattr(spelling, way).format(level=level, number=levels - 1 - level)
            for i in range(model.layers_per_block + (half == "decoder")):
                yield from _inside(half, f"{way}_{level}_block_{i}", f"{prefix}.{spelling.blocks}.{i}", spelling)
                yield from _inside(
                    half, f"{way}_{level}_attention_{i}", f"{prefix}.{spelling.attentions}.{i}", spelling
                )
            resample = spelling.smaller if way == "down" else spelling.larger
            yield (half, f"{way}_{level}_resample", "conv"), (f"{half}.{prefix}.{resample}", CONV)


def _inside(half: str, ours: str, theirs: str, spelling: Spelling) -> Iterator[tuple[Path, tuple[str, Layout]]]:
    attends = "attention" in ours
    for layer, name in (spelling.attention if attends else spelling.block).items():
        yield (half, ours, layer), (f"{half}.{theirs}.{name}", spelling.linear if attends else CONV)
