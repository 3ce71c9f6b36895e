"""Where the parameters of tiny autoencoders lie in diffusers' AutoencoderTiny, which numbers layers in sequence."""

from __future__ import annotations

from archirf_jax.interop.weights import CONV, SAME, Layout, Path, Rename
from archirf_jax.models.autoencoder_tiny import AutoencoderTiny


def rename_taesd(model: AutoencoderTiny) -> Rename:
    """Where the parameters of `model` lie in the published weights."""
    encoder = ["level_0_conv"]
    for level, blocks in enumerate(model.num_encoder_blocks):
        encoder += [f"level_{level}_conv"] * bool(level) + [f"level_{level}_block_{i}" for i in range(blocks)]
    decoder = ["conv_in", "activation"]
    for level, blocks in enumerate(model.num_decoder_blocks):
        decoder += [f"level_{level}_block_{i}" for i in range(blocks)] + ["upsample", f"level_{level}_conv"]
    halves = {"encoder": [*encoder, "conv_out"], "decoder": [*decoder[:-2], "conv_out"]}

    def find(path: Path) -> tuple[str, Layout]:
        half, layer, *inside, leaf = path
        if layer not in halves[half]:
            raise KeyError(layer)
        name = f"{half}.layers.{halves[half].index(layer)}"
        if inside:  # a convolution of a block, with a ReLU after it
            name = f"{name}.conv.{2 * int(inside[0].removeprefix('conv_'))}"
        return (f"{name}.weight", CONV) if leaf == "kernel" else (f"{name}.bias", SAME)

    return find
