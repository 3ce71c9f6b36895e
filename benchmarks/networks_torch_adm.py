"""ADM's U-Net in PyTorch (Dhariwal & Nichol 2021, "Diffusion Models Beat GANs on Image Synthesis", Sec. 3).

It is the function of `archirf_jax.models.adm_unet` with scale and shift by the embedding, residual blocks that change
the resolution and the attention's new order. Its layers have the names of ours.

Maps are (B, C, H, W), the embedding of time and label is (B, E); attention takes maps in channels-last without a copy.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

GROUPS = 32  # of every norm


def sinusoids(t: Tensor, width: int) -> Tensor:
    """Times (B,) -> (B, width): all cosines, then all sines, at frequencies from 1 down to 1 / 10,000."""
    half = width // 2
    frequencies = torch.exp(-math.log(10_000) / half * torch.arange(half, device=t.device))
    angles = t[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class TimeEmbedding(nn.Module):
    """Times (B,) -> (B, 4 model_channels)."""

    def __init__(self, model_channels: int) -> None:
        """Draw the weights."""
        super().__init__()
        self.hidden = nn.Linear(model_channels, 4 * model_channels)
        self.out = nn.Linear(4 * model_channels, 4 * model_channels)

    def forward(self, t: Tensor) -> Tensor:
        """t (B,) -> (B, 4 model_channels)."""
        h: Tensor = self.out(functional.silu(self.hidden(sinusoids(t, self.hidden.in_features))))
        return h


class ResBlock(nn.Module):
    """Two convolutions around which a skip connection leads, conditioned between them (Sec. 3.1, AdaGN).

    Args:
        inputs, width: channels that come in and out.
        embedding: channels of the embedding.
        dropout: rate before the second convolution.
        direction: "down" halves the map, "up" doubles it; "" leaves it.
    """

    def __init__(self, inputs: int, width: int, embedding: int, dropout: float, direction: str = "") -> None:
        """Draw the weights; the second convolution starts at zero."""
        super().__init__()
        self.dropout, self.direction = dropout, direction
        self.norm_in = nn.GroupNorm(GROUPS, inputs)
        self.conv_in = nn.Conv2d(inputs, width, 3, padding=1)
        self.embedding_projection = nn.Linear(embedding, 2 * width)
        self.norm_out = nn.GroupNorm(GROUPS, width)
        self.conv_out = zero(nn.Conv2d(width, width, 3, padding=1))
        self.skip = nn.Conv2d(inputs, width, 1) if inputs != width else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Map x (B, inputs, H, W), embedding (B, E) -> (B, width, H', W')."""
        h = self.conv_in(self._resize(functional.silu(self.norm_in(x)).to(x.dtype)))
        modulation = self.embedding_projection(functional.silu(emb))[:, :, None, None]
        scale, shift = modulation.float().chunk(2, dim=1)
        h = functional.silu(self.norm_out(h) * (1 + scale) + shift).to(x.dtype)
        h = self.conv_out(functional.dropout(h, self.dropout, self.training))
        skipped: Tensor = self.skip(self._resize(x))
        return skipped + h

    def _resize(self, x: Tensor) -> Tensor:
        if self.direction == "down":
            return functional.avg_pool2d(x, 2)
        return functional.interpolate(x, scale_factor=2) if self.direction == "up" else x


class Attention(nn.Module):
    """Self-attention of all pixels, added to its input."""

    def __init__(self, width: int, heads: int) -> None:
        """Draw the weights; the last layer starts at zero."""
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(GROUPS, width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = zero(nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) -> (B, C, H, W)."""
        b, d, height, width = x.shape
        qkv = self.qkv(self.norm(x).flatten(2).transpose(1, 2))  # (B, N, 3 C)
        parts = qkv.view(b, height * width, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = parts.unbind(0)  # (B, heads, N, C / heads)
        h = functional.scaled_dot_product_attention(q, k, v)
        h = self.out(h.transpose(1, 2).reshape(b, height * width, d))
        return x + h.transpose(1, 2).unflatten(2, (height, width))


def zero(layer: nn.Module) -> nn.Module:
    """A layer whose parameters are 0."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class ADMUNet(nn.Module):
    """A U-Net of residual blocks; the arguments are our `ADMUNet`'s, by default those for ImageNet-64."""

    def __init__(
        self,
        channels: int = 3,
        num_classes: int = 1000,
        model_channels: int = 192,
        num_res_blocks: int = 3,
        channel_mult: tuple[int, ...] = (1, 2, 3, 4),
        attention_downsamples: tuple[int, ...] = (2, 4, 8),
        num_head_channels: int = 64,
        dropout: float = 0.1,
    ) -> None:
        """Draw the weights; the last layer starts at zero."""
        super().__init__()
        widths, embedding = [model_channels * times for times in channel_mult], 4 * model_channels

        def block(inputs: int, width: int, direction: str = "") -> ResBlock:
            return ResBlock(inputs, width, embedding, dropout, direction)

        def attention(width: int) -> Attention:
            return Attention(width, width // num_head_channels)

        self.time_embedding = TimeEmbedding(model_channels)
        self.label_embedding = nn.Embedding(num_classes, embedding)
        # Both halves in the order in which their layers act.
        self.encoder = encoder = nn.ModuleDict({"input": nn.Conv2d(channels, widths[0], 3, padding=1)})
        self.decoder = decoder = nn.ModuleDict()
        maps = [x := widths[0]]
        for level, width in enumerate(widths):
            for i in range(num_res_blocks):
                encoder[f"down_{level}_block_{i}"] = block(x, width)
                if 2**level in attention_downsamples:
                    encoder[f"down_{level}_attention_{i}"] = attention(width)
                maps.append(x := width)
            if level + 1 < len(widths):
                encoder[f"down_{level}_resample"] = block(x, x, "down")
                maps.append(x)
        encoder["middle_block_0"], encoder["middle_attention"] = block(x, x), attention(x)
        encoder["middle_block_1"] = block(x, x)
        for level, width in reversed(list(enumerate(widths))):
            for i in range(num_res_blocks + 1):
                decoder[f"up_{level}_block_{i}"] = block(x + maps.pop(), width)
                if 2**level in attention_downsamples:
                    decoder[f"up_{level}_attention_{i}"] = attention(width)
                x = width
            if level:
                decoder[f"up_{level}_resample"] = block(x, x, "up")
        self.norm = nn.GroupNorm(GROUPS, x)
        self.output = zero(nn.Conv2d(x, 2 * channels, 3, padding=1))  # the second half is the variance's

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        """Noisy images x (B, C, H, W), times 0 to 1000 as t (B,), labels (B,) -> (B, 2 C, H, W).

        Labels that are num_classes add nothing to the embedding.
        """
        classes = self.label_embedding.num_embeddings
        rows = self.label_embedding(label.clip(max=classes - 1)) * (label < classes)[:, None]
        emb = self.time_embedding(t) + rows
        maps: list[Tensor] = []
        for name, layer in self.encoder.items():
            if isinstance(layer, ResBlock):
                x = layer(x, emb)
            else:
                x = layer(x)
            if "down" in name and "attention" in name:
                maps[-1] = x
            elif "middle" not in name:
                maps.append(x)
        for name, layer in self.decoder.items():
            if "block" in name:
                x = layer(torch.cat([x, maps.pop()], dim=1), emb)
            else:
                x = layer(x) if "attention" in name else layer(x, emb)
        answer: Tensor = self.output(functional.silu(self.norm(x)))
        return answer
