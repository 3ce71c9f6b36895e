"""The PyTorch side of benchmarks.networks, for a Python that has torch and diffusers: it answers lines on its input.

`NAME BATCH` makes a network, `forward` and `step` time it once; each answer is one line of JSON on the output.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import diffusers
import torch
from diffusers import DiTTransformer2DModel, SD3Transformer2DModel, UNet2DModel

Call = Callable[[], Any]


def dit(batch: int) -> tuple[Any, torch.Tensor, Call]:
    """DiT-S/2 on 32x32x4 latents."""
    model = DiTTransformer2DModel(
        num_attention_heads=6, attention_head_dim=64, num_layers=12, sample_size=32, patch_size=2, in_channels=4,
        out_channels=4, num_embeds_ada_norm=10,
    )  # fmt: skip
    for block in model.transformer_blocks:  # one embedding of times and labels, as in the paper
        block.norm1.emb = model.transformer_blocks[0].norm1.emb
    x, t, y = torch.randn(batch, 4, 32, 32), torch.rand(batch) * 1000, torch.zeros(batch, dtype=torch.long)
    return model, x, lambda: model(x, timestep=t, class_labels=y).sample


def mmdit(batch: int) -> tuple[Any, torch.Tensor, Call]:
    """Six blocks of SD3 on 32x32x16 latents and 77 tokens of text."""
    model = SD3Transformer2DModel(
        sample_size=32, patch_size=2, in_channels=16, num_layers=6, attention_head_dim=64, num_attention_heads=6,
        joint_attention_dim=768, caption_projection_dim=384, pooled_projection_dim=768, out_channels=16,
        pos_embed_max_size=32,
    )  # fmt: skip
    x, t = torch.randn(batch, 16, 32, 32), torch.rand(batch) * 1000
    tokens, pooled = torch.randn(batch, 77, 768), torch.randn(batch, 768)
    return model, x, lambda: model(x, encoder_hidden_states=tokens, pooled_projections=pooled, timestep=t).sample


def adm_unet(batch: int) -> tuple[Any, torch.Tensor, Call]:
    """The U-Net nearest to ADM's: residual blocks conditioned by scale and shift, attention at 16x16 and 8x8."""
    model = UNet2DModel(
        sample_size=32, in_channels=3, out_channels=3, layers_per_block=2, block_out_channels=(64, 128, 128),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=64, resnet_time_scale_shift="scale_shift", num_class_embeds=10,
    )  # fmt: skip
    x, t, y = torch.randn(batch, 3, 32, 32), torch.rand(batch) * 1000, torch.zeros(batch, dtype=torch.long)
    return model, x, lambda: model(x, timestep=t, class_labels=y).sample


NETWORKS = {"dit": dit, "mmdit": mmdit, "adm_unet": adm_unet}


def calls(name: str, batch: int) -> tuple[dict[str, Any], dict[str, Call]]:
    """A network: its size, and the calls that can be timed."""
    model, x, forward = NETWORKS[name](batch)
    model.train()
    optimizer, target = torch.optim.AdamW(model.parameters(), lr=1e-4), torch.randn_like(x)

    def evaluate() -> None:
        with torch.inference_mode():
            forward()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        ((forward() - target) ** 2).mean().backward()
        optimizer.step()

    about = {
        "name": type(model).__name__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "threads": torch.get_num_threads(),
    }
    return about, {"forward": evaluate, "step": step}


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
            answer, known = calls(word, int(rest[0]))
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
