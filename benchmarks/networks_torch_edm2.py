"""EDM2's U-Net in PyTorch (Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models",
config G).

It is the function of `archirf_jax.models.edm2_unet`, and its layers have the names of ours. Maps are (B, C, H, W);
products of single pixels are made along the last axis, for which maps in channels-last are not copied. Equations are
the paper's. A weight (out, in, rows, columns) or (out, in) stays float32.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

EPS = 1e-4  # added to root mean squares
SILU_RMS = 0.596  # of silu(x) for a normal x


def normalized(x: Tensor, dims: list[int]) -> Tensor:
    """x over its root mean square along some dimensions, in float32."""
    x = x.float()
    return x / ((x.square().mean(dims, keepdim=True) + 1e-30).sqrt() + EPS)


def unit_weight(weight: Tensor) -> Tensor:
    """A weight (out, ...) whose every output has numbers of mean square 1."""
    return normalized(weight, list(range(1, weight.ndim)))


def mp_silu(x: Tensor) -> Tensor:
    """SiLU over its root mean square (Eq. 81)."""
    return functional.silu(x) / SILU_RMS


def mp_sum(a: Tensor, b: Tensor, balance: float) -> Tensor:
    """(1 - balance) a + balance b, scaled back to mean square 1 (Eq. 88)."""
    return ((1 - balance) * a + balance * b) / (balance**2 + (1 - balance) ** 2) ** 0.5


def mp_concat(a: Tensor, b: Tensor, balance: float) -> Tensor:
    """a (B, N, H, W), b (B, M, H, W) -> (B, N + M, H, W) of mean square 1 (Eq. 103)."""
    n, m = a.shape[1], b.shape[1]
    scale = ((n + m) / (balance**2 + (1 - balance) ** 2)) ** 0.5
    return torch.cat([scale * (1 - balance) / n**0.5 * a, scale * balance / m**0.5 * b], dim=1)


class Fourier(nn.Module):
    """Times (B,) -> (B, channels): cosines at constant random frequencies, in random phases (Eq. 75)."""

    frozen_frequencies: Tensor
    frozen_phases: Tensor

    def __init__(self, channels: int) -> None:
        """Draw the constants."""
        super().__init__()
        self.register_buffer("frozen_frequencies", 2 * torch.pi * torch.randn(channels))
        self.register_buffer("frozen_phases", 2 * torch.pi * torch.rand(channels))

    def forward(self, t: Tensor) -> Tensor:
        """t (B,) -> (B, channels) float32."""
        return 2**0.5 * torch.cos(t[:, None] * self.frozen_frequencies + self.frozen_phases)


class MPLayer(nn.Module):
    """A convolution, or without a size a linear layer along the last axis; there is no bias (Eq. 47)."""

    def __init__(self, inputs: int, outputs: int, size: int | None = None) -> None:
        """Draw the weight."""
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, *([size, size] if size else [])))

    def forward(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        """x (B, inputs, H, W) or (..., inputs) -> as many outputs, times a gain."""
        weight = unit_weight(self.weight) * (gain / self.weight[0].numel() ** 0.5)
        if weight.ndim == 2:
            return functional.linear(x, weight)
        return functional.conv2d(x, weight, padding=weight.shape[-1] // 2)

    def of_pixels(self, x: Tensor) -> Tensor:
        """x (B, inputs, H, W) -> (B, outputs, H, W), of a linear layer."""
        return self(x.movedim(1, -1)).movedim(-1, 1)


class Block(nn.Module):
    """A residual branch conditioned on the embedding, then self-attention (Fig. 21).

    Args:
        inputs, features: channels that come in and out.
        embedding: channels of the embedding.
        encoder: normalise each pixel before the branch.
        resample: "down" halves, "up" doubles the image first; "" leaves it.
        heads: of the attention; 0 = there is none.
    """

    res_balance, attn_balance, clip_act = 0.3, 0.3, 256.0

    def __init__(
        self, inputs: int, features: int, embedding: int, encoder: bool = False, resample: str = "", heads: int = 0
    ) -> None:
        """As the class says."""
        super().__init__()
        self.is_encoder, self.resample, self.heads = encoder, resample, heads
        self.skip = MPLayer(inputs, features) if inputs != features else None
        self.conv_0 = MPLayer(features if encoder else inputs, features, 3)
        self.embedding = MPLayer(embedding, features)
        self.embedding_gain = nn.Parameter(torch.zeros(()))
        self.conv_1 = MPLayer(features, features, 3)
        if heads:
            self.qkv, self.out = MPLayer(features, 3 * features), MPLayer(features, features)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Images x (B, inputs, H, W), embeddings (B, E) -> (B, features, H', W')."""
        if self.resample:
            # The published filter (1, 1): means of four pixels, or each pixel four times.
            x = functional.avg_pool2d(x, 2) if self.resample == "down" else functional.interpolate(x, scale_factor=2)
        skip = x if self.skip is None else self.skip.of_pixels(x)
        if self.is_encoder:
            x = skip = normalized(skip, [1]).to(skip.dtype)
        h = self.conv_0(mp_silu(x))
        scale = 1 + self.embedding(emb, self.embedding_gain)
        h = self.conv_1(mp_silu(h * scale[:, :, None, None].to(h.dtype)))
        x = mp_sum(skip, h, self.res_balance)
        if self.heads:
            x = mp_sum(x, self._attention(x), self.attn_balance)
        return x.clip(-self.clip_act, self.clip_act)

    def _attention(self, x: Tensor) -> Tensor:
        b, d, height, width = x.shape
        qkv = self.qkv(x.flatten(2).transpose(1, 2)).view(b, height * width, self.heads, d // self.heads, 3)
        # The last axis must be dense for all kernels but the plain one.
        parts = normalized(qkv.permute(4, 0, 2, 1, 3).contiguous(), [-1]).to(qkv.dtype)
        q, k, v = parts.unbind(0)  # (B, heads, N, width)
        h = functional.scaled_dot_product_attention(q, k, v)
        return self.out(h.transpose(1, 2).reshape(b, height * width, d)).transpose(1, 2).unflatten(2, (height, width))


class EDM2UNet(nn.Module):
    """Magnitude-preserving U-Net; the arguments are `archirf_jax.models.edm2_unet.EDM2UNet`'s, of size S if not given.

    All its parameters but the gains, which are single numbers, are weights whose length says nothing.
    """

    concat_balance, label_balance = 0.5, 0.5

    def __init__(
        self,
        channels: int = 3,
        num_classes: int = 1000,
        model_channels: int = 192,
        channel_mult: tuple[int, ...] = (1, 2, 3, 4),
        num_blocks: int = 3,
        attention_levels: tuple[int, ...] = (2, 3),
        channels_per_head: int = 64,
    ) -> None:
        """Draw the weights."""
        super().__init__()
        widths = [model_channels * times for times in channel_mult]
        embedding, last = max(widths), len(widths) - 1
        self.time_features = Fourier(widths[0])
        self.noise_embedding = MPLayer(widths[0], embedding)
        self.label_embedding = MPLayer(num_classes, embedding)
        self.out_gain = nn.Parameter(torch.zeros(()))
        self.out_conv = MPLayer(widths[0], channels, 3)

        def block(inputs: int, width: int, attends: bool = False, **how: bool | str) -> Block:
            return Block(inputs, width, embedding, heads=width // channels_per_head * attends, **how)  # type: ignore[arg-type]

        # In the order in which they act.
        self.blocks = blocks = nn.ModuleDict({"enc_0_conv": MPLayer(channels + 1, widths[0], 3)})
        skips = [x := widths[0]]
        for level, width in enumerate(widths):
            if level:
                blocks[f"enc_{level}_down"] = block(x, x, encoder=True, resample="down")
                skips.append(x)
            for i in range(num_blocks):
                blocks[f"enc_{level}_block{i}"] = block(x, width, level in attention_levels, encoder=True)
                skips.append(x := width)
        for level, width in reversed(list(enumerate(widths))):
            if level == last:
                blocks[f"dec_{level}_in0"] = block(x, x, attends=True)
                blocks[f"dec_{level}_in1"] = block(x, x)
            else:
                blocks[f"dec_{level}_up"] = block(x, x, resample="up")
            for i in range(num_blocks + 1):
                blocks[f"dec_{level}_block{i}"] = block(x + skips.pop(), width, level in attention_levels)
                x = width

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        """Scaled images x (B, C, H, W), ln(sigma) / 4 as t (B,), labels (B,) -> (B, C, H, W).

        Labels that are num_classes add nothing to the embedding.
        """
        classes = self.label_embedding.weight.shape[1]
        rows = (label[:, None] == torch.arange(classes, device=label.device)) * classes**0.5
        emb = mp_sum(self.noise_embedding(self.time_features(t)), self.label_embedding(rows), self.label_balance)
        emb = mp_silu(emb)
        skips: list[Tensor] = []
        x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)  # ones stand in for biases
        for name, block in self.blocks.items():
            if name == "enc_0_conv":
                x = block(x)
            elif name.startswith("dec") and "block" in name:
                x = block(mp_concat(x, skips.pop(), self.concat_balance), emb)
            else:
                x = block(x, emb)
            if name.startswith("enc"):
                skips.append(x)
        return self.out_conv(x, self.out_gain)

    @torch.no_grad()
    def normalize_weights(self) -> None:
        """Forced weight normalization (Eq. 66), in place."""
        for parameter in self.parameters():
            if parameter.ndim:
                parameter.copy_(unit_weight(parameter))
