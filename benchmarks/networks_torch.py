"""The PyTorch side of comparisons, for a Python that has torch and diffusers: networks, and what is timed of them.

As a script it answers lines on its input for benchmarks.networks: `NAME BATCH` makes a network, `forward` and `step`
time it once; each answer is one line of JSON on the output.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import diffusers
import torch
from diffusers import DiTTransformer2DModel, SD3Transformer2DModel, UNet2DModel

Call = Callable[[], Any]


class Peer(NamedTuple):
    """A network and its inputs.

    Attributes:
        model: the module.
        x: its images (B, C, H, W).
        conditions: its other inputs by name.
    """

    model: Any
    x: torch.Tensor
    conditions: dict[str, torch.Tensor]


def dit(batch: int, side: int = 32, **sizes: Any) -> Peer:
    """DiT with patches of 2 on latents of 4 channels; S/2 unless sizes are given."""
    sizes = dict(num_attention_heads=6, attention_head_dim=64, num_layers=12, num_embeds_ada_norm=10) | sizes
    model = DiTTransformer2DModel(sample_size=side, patch_size=2, in_channels=4, out_channels=4, **sizes)
    for block in model.transformer_blocks:  # one embedding of times and labels, as in the paper
        block.norm1.emb = model.transformer_blocks[0].norm1.emb
    labels = torch.zeros(batch, dtype=torch.long)
    return Peer(model, torch.randn(batch, 4, side, side), {"timestep": _times(batch), "class_labels": labels})


def mmdit(batch: int, side: int = 32, **sizes: Any) -> Peer:
    """Blocks of SD3 on latents of 16 channels and 77 tokens of text; six of width 384 unless sizes are given."""
    sizes = dict(num_layers=6, attention_head_dim=64, num_attention_heads=6, caption_projection_dim=384) | sizes
    model = SD3Transformer2DModel(
        sample_size=side, patch_size=2, in_channels=16, joint_attention_dim=768, pooled_projection_dim=768,
        out_channels=16, pos_embed_max_size=32, **sizes,
    )  # fmt: skip
    texts = {"encoder_hidden_states": torch.randn(batch, 77, 768), "pooled_projections": torch.randn(batch, 768)}
    return Peer(model, torch.randn(batch, 16, side, side), texts | {"timestep": _times(batch)})


def adm_unet(batch: int, side: int = 32, **sizes: Any) -> Peer:
    """The U-Net nearest to ADM's: scale and shift by time, attention at all sizes but the largest."""
    sizes = {"layers_per_block": 2, "block_out_channels": (64, 128, 128), **sizes}
    levels = len(sizes["block_out_channels"]) - 1
    model = UNet2DModel(
        sample_size=side, in_channels=3, out_channels=3,
        down_block_types=("DownBlock2D", *["AttnDownBlock2D"] * levels),
        up_block_types=(*["AttnUpBlock2D"] * levels, "UpBlock2D"),
        attention_head_dim=64, resnet_time_scale_shift="scale_shift", num_class_embeds=10, **sizes,
    )  # fmt: skip
    labels = torch.zeros(batch, dtype=torch.long)
    return Peer(model, torch.randn(batch, 3, side, side), {"timestep": _times(batch), "class_labels": labels})


def adm_imagenet64(batch: int, side: int = 64, **sizes: Any) -> Peer:
    """The same in the size of ADM's for ImageNet at 64x64."""
    return adm_unet(batch, side, **(dict(layers_per_block=3, block_out_channels=(192, 384, 576, 768)) | sizes))


def _times(batch: int) -> torch.Tensor:
    return torch.rand(batch) * 1000


NETWORKS = {"dit": dit, "mmdit": mmdit, "adm_unet": adm_unet, "adm_imagenet64": adm_imagenet64}


def calls(peer: Peer) -> dict[str, Call]:
    """What can be timed of a network in float32."""
    model, optimizer = peer.model.train(), torch.optim.AdamW(peer.model.parameters(), lr=1e-4)
    target = torch.randn_like(peer.x)

    def forward() -> torch.Tensor:
        answer: torch.Tensor = model(peer.x, **peer.conditions).sample
        return answer

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
    return {
        "name": type(peer.model).__name__,
        "parameters": sum(p.numel() for p in peer.model.parameters()),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
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
            answer: Any = time.perf_counter() - begun
        else:
            peer = NETWORKS[word](int(rest[0]))
            answer, known = about(peer), calls(peer)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
