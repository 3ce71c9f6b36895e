"""openai/guided-diffusion: where the parameters of ADM's networks lie in the published weights.

The published blocks are numbered through all levels, those that change the resolution among them; ours by level.
"""

from __future__ import annotations

from archirf_jax.interop.weights import CONV, LINEAR, POINTWISE, SAME, Layout, Path, Rename
from archirf_jax.models.adm_classifier import ADMClassifier
from archirf_jax.models.adm_unet import ADMUNet

Places = dict[Path, tuple[str, Layout]]  # our layer -> the published one, the layout of its kernel

TIME: Places = {
    ("time_embedding", "hidden"): ("time_embed.0", LINEAR),
    ("time_embedding", "out"): ("time_embed.2", LINEAR),
}
BLOCK: Places = {
    ("norm_in",): ("in_layers.0", SAME),
    ("conv_in",): ("in_layers.2", CONV),
    ("embedding_projection",): ("emb_layers.1", LINEAR),
    ("norm_out",): ("out_layers.0", SAME),
    ("conv_out",): ("out_layers.3", CONV),
    ("skip",): ("skip_connection", CONV),
}
ATTENTION: Places = {("norm",): ("norm", SAME), ("qkv",): ("qkv", POINTWISE), ("out",): ("proj_out", POINTWISE)}
POINT = Layout(lambda w: w[..., 0, 0].T, lambda w: w.T[..., None, None])  # 2-D convolution of size 1 <-> (in, out)
POOLS: dict[str, Places] = {
    "attention": {
        ("norm",): ("out.0", SAME),
        ("head",): ("out.2", SAME),
        ("head", "qkv"): ("out.2.qkv_proj", POINTWISE),
        ("head", "out"): ("out.2.c_proj", POINTWISE),
    },
    "adaptive": {("norm",): ("out.0", SAME), ("head",): ("out.3", POINT)},
    "spatial": {("head", "hidden"): ("out.0", LINEAR), ("head", "out"): ("out.2", LINEAR)},
    "spatial_v2": {
        ("head", "hidden"): ("out.0", LINEAR),
        ("head", "norm"): ("out.1", SAME),
        ("head", "out"): ("out.3", LINEAR),
    },
}


def rename_unet(model: ADMUNet) -> Rename:
    """Where the parameters of `model` lie in the published `state_dict` of UNetModel or SuperResModel."""
    ends: Places = {("label_embedding",): ("label_emb", SAME), ("norm",): ("out.0", SAME), ("output",): ("out.2", CONV)}
    return _rename(TIME | ends | _encoder(model) | _decoder(model))


def rename_classifier(model: ADMClassifier) -> Rename:
    """Where the parameters of `model` lie in the published `state_dict` of EncoderUNetModel."""
    return _rename(TIME | POOLS[model.pool] | _encoder(model))


def _rename(places: Places) -> Rename:
    def find(path: Path) -> tuple[str, Layout]:
        *layer, leaf = path
        name, layout = places[tuple(layer)]
        if leaf == "positions":
            return f"{name}.positional_embedding", LINEAR
        return (
            (f"{name}.weight", layout)
            if leaf == "kernel"
            else (f"{name}.{'bias' if leaf == 'bias' else 'weight'}", SAME)
        )

    return find


def _encoder(model: ADMUNet | ADMClassifier) -> Places:
    places: Places = {("encoder", "input"): ("input_blocks.0.0", CONV)}
    places |= _inside("encoder", "middle_block_0", "middle_block.0", BLOCK)
    places |= _inside("encoder", "middle_attention", "middle_block.1", ATTENTION)
    places |= _inside("encoder", "middle_block_1", "middle_block.2", BLOCK)
    for level in range(len(model.channel_mult)):
        first = 1 + level * (model.num_res_blocks + 1)
        for i in range(model.num_res_blocks):
            places |= _inside("encoder", f"down_{level}_block_{i}", f"input_blocks.{first + i}.0", BLOCK)
            places |= _inside("encoder", f"down_{level}_attention_{i}", f"input_blocks.{first + i}.1", ATTENTION)
        theirs = f"input_blocks.{first + model.num_res_blocks}.0"
        places |= _resampling(model, "encoder", f"down_{level}_resample", theirs, "op")
    return places


def _decoder(model: ADMUNet) -> Places:
    places: Places = {}
    levels, blocks = len(model.channel_mult), model.num_res_blocks + 1
    for level in range(levels):
        first = (levels - 1 - level) * blocks
        for i in range(blocks):
            places |= _inside("decoder", f"up_{level}_block_{i}", f"output_blocks.{first + i}.0", BLOCK)
            places |= _inside("decoder", f"up_{level}_attention_{i}", f"output_blocks.{first + i}.1", ATTENTION)
        part = 2 if 2**level in model.attention_downsamples else 1
        theirs = f"output_blocks.{first + blocks - 1}.{part}"
        places |= _resampling(model, "decoder", f"up_{level}_resample", theirs, "conv")
    return places


def _resampling(model: ADMUNet | ADMClassifier, half: str, ours: str, theirs: str, conv: str) -> Places:
    if model.resblock_updown:
        return _inside(half, ours, theirs, BLOCK)
    return {(half, ours): (f"{theirs}.{conv}", CONV)}


def _inside(half: str, ours: str, theirs: str, layers: Places) -> Places:
    return {(half, ours, *path): (f"{theirs}.{name}", layout) for path, (name, layout) in layers.items()}
