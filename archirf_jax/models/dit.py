"""DiT with adaLN-Zero blocks (Peebles & Xie 2022, "Scalable Diffusion Models with Transformers", Sec. 3.2, Fig. 3).

An image becomes patches, patches become tokens, a transformer whose norms are modulated by time and label runs over
them, and a linear layer turns each token back into a patch. The final layer and every gate start at zero: the
network's output is exactly 0 at initialisation and every block is the identity.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from archirf_jax.errors import UserError
from archirf_jax.models import layers

# Peebles & Xie 2022, Table 1: width, depth and heads; "tiny" is this project's own, for 8x8 digits on a CPU.
SIZES = {
    "tiny": dict(hidden_size=96, depth=4, num_heads=4),
    "S": dict(hidden_size=384, depth=12, num_heads=6),
    "B": dict(hidden_size=768, depth=12, num_heads=12),
    "L": dict(hidden_size=1024, depth=24, num_heads=16),
    "XL": dict(hidden_size=1152, depth=28, num_heads=16),
}
PRESETS = {f"{size}/{patch}": SIZES[size] | dict(patch_size=patch) for size in SIZES for patch in (2, 4, 8)}


class DiTBlock(nn.Module):
    """Attention and MLP, each between an adaptive norm and a gate that starts at zero (adaLN-Zero)."""

    num_heads: int
    mlp_ratio: float = 4.0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, c: jax.Array) -> jax.Array:
        """Tokens x (B, N, D) and condition c (B, D) -> (B, N, D)."""
        width = x.shape[-1]
        norm = nn.LayerNorm(epsilon=1e-6, use_scale=False, use_bias=False, dtype=jnp.float32)
        modulation = nn.Dense(6 * width, dtype=self.dtype, kernel_init=layers.zeros, name="modulation")(nn.silu(c))
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = jnp.split(modulation, 6, axis=-1)

        h = layers.modulate(norm(x), shift_a, scale_a).astype(self.dtype)
        x = x + gate_a[:, None] * layers.SelfAttention(self.num_heads, self.dtype, name="attention")(h)
        h = layers.modulate(norm(x), shift_m, scale_m).astype(self.dtype)
        return x + gate_m[:, None] * layers.Mlp(int(width * self.mlp_ratio), self.dtype, name="mlp")(h)


class FinalLayer(nn.Module):
    """Adaptive norm and a zero-initialised linear map to patches, in float32."""

    out_features: int

    @nn.compact
    def __call__(self, x: jax.Array, c: jax.Array) -> jax.Array:
        """Tokens x (B, N, D) and condition c (B, D) -> (B, N, out_features)."""
        modulation = nn.Dense(2 * x.shape[-1], kernel_init=layers.zeros, name="modulation")(nn.silu(c))
        shift, scale = jnp.split(modulation, 2, axis=-1)
        h = nn.LayerNorm(epsilon=1e-6, use_scale=False, use_bias=False, dtype=jnp.float32)(x)
        return nn.Dense(self.out_features, kernel_init=layers.zeros, name="linear")(layers.modulate(h, shift, scale))


class DiT(nn.Module):
    """Class-conditional diffusion transformer; a `ModelFn` once its parameters are bound.

    Attributes:
        num_classes: labels are 0..num_classes-1, the null label is num_classes.
        patch_size: side of a square patch in pixels; both image sides must be multiples of it.
        hidden_size: token width, a multiple of num_heads and of 4.
        depth: number of blocks.
        num_heads: attention heads per block.
        mlp_ratio: width of the MLP's hidden layer over hidden_size.
        learn_sigma: give 2C output channels instead of C; the second half is the variance's.
        dtype: compute dtype; norms, softmax and the final layer stay float32.
    """

    num_classes: int
    patch_size: int = 2
    hidden_size: int = 384
    depth: int = 12
    num_heads: int = 6
    mlp_ratio: float = 4.0
    learn_sigma: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, t: jax.Array, y: jax.Array) -> jax.Array:
        """Noisy images x (B, H, W, C), network times t (B,), labels y (B,) int32 -> (B, H, W, C or 2C) float32.

        Raises:
            UserError: a size that does not divide as the attributes above say.
        """
        b, height, width, channels = x.shape
        self._check(height, width)
        p, d = self.patch_size, self.hidden_size
        rows, columns = height // p, width // p
        out_channels = 2 * channels if self.learn_sigma else channels

        x = rearrange(x, "b (r p) (s q) c -> b (r s) (p q c)", p=p, q=p)  # (B, N, p*p*C)
        x = nn.Dense(d, dtype=self.dtype, kernel_init=layers.xavier, name="patch_embedding")(x)  # (B, N, D)
        x = x + layers.sincos_positions_2d(rows, columns, d).astype(x.dtype)
        label = nn.Embed(self.num_classes + 1, d, embedding_init=layers.small_normal, name="label_embedding")(y)
        c = layers.TimestepEmbedder(d, self.dtype, name="time_embedding")(t) + label.astype(self.dtype)  # (B, D)

        for i in range(self.depth):
            x = DiTBlock(self.num_heads, self.mlp_ratio, self.dtype, name=f"block_{i}")(x, c)
        x = FinalLayer(p * p * out_channels, name="final_layer")(x, c)  # (B, N, p*p*C')
        return rearrange(x, "b (r s) (p q c) -> b (r p) (s q) c", r=rows, p=p, q=p)

    def _check(self, height: int, width: int) -> None:
        for name in ("patch_size", "hidden_size", "num_heads", "mlp_ratio"):
            if not getattr(self, name) > 0:
                raise UserError(f"config.model.{name}: {getattr(self, name)} must be above 0")
        if int(self.hidden_size * self.mlp_ratio) < 1:
            raise UserError(
                f"config.model.mlp_ratio: {self.mlp_ratio} leaves no hidden unit at width {self.hidden_size}"
            )
        if self.depth < 0:
            raise UserError(f"config.model.depth: {self.depth} must be 0 or more")
        if height % self.patch_size or width % self.patch_size:
            raise UserError(
                f"config.model.patch_size: {self.patch_size} does not divide the image size {height}x{width}; "
                "choose a patch size that divides both sides"
            )
        if self.hidden_size % self.num_heads or self.hidden_size % 4:
            raise UserError(
                f"config.model.hidden_size: {self.hidden_size} must be a multiple of 4 "
                f"and of num_heads={self.num_heads}"
            )


build = DiT
