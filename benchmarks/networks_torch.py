"""The PyTorch side of comparisons, for a Python that has torch: networks, and what is timed of them.

DiT and MMDiT are those of diffusers; EDM2's and ADM's U-Nets, which it does not have, are written beside this file.
As a program it answers lines on its input for benchmarks.networks: `NAME BATCH` makes a network, `forward` and `step`
time it once; each answer is one line of JSON on the output.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any, NamedTuple

import torch

from benchmarks.networks_torch_adm import ADMUNet
from benchmarks.networks_torch_edm2 import EDM2UNet

Call = Callable[[], Any]


class Peer(NamedTuple):
    """A network and its inputs.

    Attributes:
        model: the module.
        x: its images (B, C, H, W).
        conditions: its other inputs by name.
        attention: (heads, tokens, width of a head) where its attention is largest.
        channels_last: whether images are best laid out so, as for convolutions.
    """

    model: Any
    x: torch.Tensor
    conditions: dict[str, torch.Tensor]
    attention: tuple[int, int, int]
    channels_last: bool = False


def answer(model: Any, x: torch.Tensor, conditions: dict[str, torch.Tensor]) -> torch.Tensor:
    """What a network says of images (B, C, H, W), of the same shape: without the variance that some give too."""
    found = model(x, **conditions)
    images: torch.Tensor = found if isinstance(found, torch.Tensor) else found.sample
    return images[:, : x.shape[1]]


def dit(batch: int, side: int = 32, **sizes: Any) -> Peer:
    """DiT with patches of 2 on latents of 4 channels; S/2 unless sizes are given."""
    from diffusers import DiTTransformer2DModel

    sizes = dict(num_attention_heads=6, attention_head_dim=64, num_layers=12, num_embeds_ada_norm=10) | sizes
    model = DiTTransformer2DModel(sample_size=side, patch_size=2, in_channels=4, out_channels=4, **sizes)
    for block in model.transformer_blocks:  # one embedding of times and labels, as in the paper
        block.norm1.emb = model.transformer_blocks[0].norm1.emb
    labels = torch.zeros(batch, dtype=torch.long)
    conditions = {"timestep": _times(batch), "class_labels": labels}
    attention = sizes["num_attention_heads"], side**2 // 4, sizes["attention_head_dim"]
    return Peer(model, torch.randn(batch, 4, side, side), conditions, attention)


def mmdit(batch: int, side: int = 32, **sizes: Any) -> Peer:
    """Blocks of SD3 on latents of 16 channels and 77 tokens of text; six of width 384 unless sizes are given."""
    from diffusers import SD3Transformer2DModel

    sizes = dict(num_layers=6, attention_head_dim=64, num_attention_heads=6, caption_projection_dim=384) | sizes
    model = SD3Transformer2DModel(
        sample_size=side, patch_size=2, in_channels=16, joint_attention_dim=768, pooled_projection_dim=768,
        out_channels=16, pos_embed_max_size=32, **sizes,
    )  # fmt: skip
    texts = {"encoder_hidden_states": torch.randn(batch, 77, 768), "pooled_projections": torch.randn(batch, 768)}
    attention = sizes["num_attention_heads"], 77 + side**2 // 4, sizes["attention_head_dim"]
    return Peer(model, torch.randn(batch, 16, side, side), texts | {"timestep": _times(batch)}, attention)


def adm_unet(batch: int, side: int = 32, **sizes: Any) -> Peer:
    """diffusers' U-Net that is nearest to ADM's: scale and shift by time, attention at all sizes but the largest."""
    from diffusers import UNet2DModel

    sizes = {"layers_per_block": 2, "block_out_channels": (64, 128, 128), **sizes}
    levels = len(sizes["block_out_channels"]) - 1
    model = UNet2DModel(
        sample_size=side, in_channels=3, out_channels=3,
        down_block_types=("DownBlock2D", *["AttnDownBlock2D"] * levels),
        up_block_types=(*["AttnUpBlock2D"] * levels, "UpBlock2D"),
        attention_head_dim=64, resnet_time_scale_shift="scale_shift", num_class_embeds=10, **sizes,
    )  # fmt: skip
    labels = torch.zeros(batch, dtype=torch.long)
    conditions = {"timestep": _times(batch), "class_labels": labels}
    attention = sizes["block_out_channels"][1] // 64, side**2 // 4, 64
    return Peer(model, torch.randn(batch, 3, side, side), conditions, attention, channels_last=True)


def adm(batch: int, side: int = 64, **sizes: Any) -> Peer:
    """ADM's U-Net; that of ImageNet at 64x64 unless sizes are given."""
    conditions = {"t": _times(batch), "label": torch.zeros(batch, dtype=torch.long)}
    attention = 6, side**2 // 4, 64
    return Peer(ADMUNet(**sizes), torch.randn(batch, 3, side, side), conditions, attention, channels_last=True)


def edm2(batch: int, side: int = 64, **sizes: Any) -> Peer:
    """EDM2's U-Net; S unless sizes are given."""
    conditions = {"t": _times(batch) / 1000, "label": torch.zeros(batch, dtype=torch.long)}
    attention = 9, side**2 // 16, 64
    return Peer(EDM2UNet(**sizes), torch.randn(batch, 3, side, side), conditions, attention, channels_last=True)


def _times(batch: int) -> torch.Tensor:
    return torch.rand(batch) * 1000


NETWORKS = {"dit": dit, "mmdit": mmdit, "adm_unet": adm_unet, "adm": adm, "edm2": edm2}


def calls(peer: Peer) -> dict[str, Call]:
    """What can be timed of a network in float32."""
    model, optimizer = peer.model.train(), torch.optim.AdamW(peer.model.parameters(), lr=1e-4)
    target = torch.randn_like(peer.x)

    def forward() -> torch.Tensor:
        return answer(model, peer.x, peer.conditions)

    def evaluate() -> None:
        with torch.inference_mode():
            forward()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        ((forward() - target) ** 2).mean().backward()
        optimizer.step()

    return {"forward": evaluate, "step": step}


def about(peer: Peer) -> dict[str, Any]:
    """What the network is, and by which packages."""
    package = type(peer.model).__module__.partition(".")[0]
    return {
        "name": type(peer.model).__name__,
        "parameters": sum(p.numel() for p in peer.model.parameters()),
        "torch": torch.__version__,
        **({"diffusers": metadata.version("diffusers")} if package == "diffusers" else {}),
        "threads": torch.get_num_threads(),
    }


def main() -> None:
    """Answer until the input ends."""
    known: dict[str, Call] = {}
    for line in sys.stdin:
        word, *rest = line.split()
        if word in known:
            begun = time.perf_counter()
            known[word]()
            said: Any = time.perf_counter() - begun
        else:
            peer = NETWORKS[word](int(rest[0]))
            said, known = about(peer), calls(peer)
        sys.stdout.write(json.dumps(said) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
