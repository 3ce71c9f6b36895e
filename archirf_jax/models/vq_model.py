"""An autoencoder with a codebook: every pixel of the latent is the nearest of a set of learned vectors.

VQ-VAE (van den Oord et al. 2017, Sec. 3) with the body of VQGAN (Esser et al. 2021); with norms that the code modulates
MoVQ (Zheng et al. 2022).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from archirf_jax.models import layers
from archirf_jax.models.autoencoder_body import Decoder, Encoder
from archirf_jax.models.autoencoder_layers import conv
from archirf_jax.models.latents import ConvolutionalAutoencoder, straight_through_of
from archirf_jax.models.layers import DIAGNOSTICS, EXTRAS

NORM_TYPES = ("group", "spatial")

# "f4", "f8": of latent diffusion; "movq": Kandinsky's; "tiny" is for images of 8 to 32 pixels on a CPU.
PRESETS: dict[str, dict[str, Any]] = {
    "tiny": dict(block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8, num_vq_embeddings=64),
    "f4": dict(block_out_channels=(128, 256, 512), latent_channels=3, num_vq_embeddings=8192),
    "f8": dict(
        block_out_channels=(128, 256, 256, 512), latent_channels=4, num_vq_embeddings=16_384, attention_levels=(3,)
    ),
    "movq": dict(
        block_out_channels=(128, 256, 256, 512),
        latent_channels=4,
        num_vq_embeddings=16_384,
        attention_levels=(3,),
        norm_type="spatial",
    ),
}


class Quantized(NamedTuple):
    """Codes of latents.

    Attributes:
        z: (B, h, w, E) the codes; gradients pass to the latents as if they were these.
        indices: (B, h, w) int32 of the codes.
        loss: (B,) the mean square distances that pull latents to codes and codes to latents, weighed.
    """

    z: jax.Array
    indices: jax.Array
    loss: jax.Array


class Codebook(nn.Module):
    """The learned vectors.

    Attributes:
        size: how many there are.
        width: their length E.
        commitment_weight: of the distance as it pulls latents.
        codebook_weight: of the distance as it pulls codes.
    """

    size: int
    width: int
    commitment_weight: float
    codebook_weight: float

    @nn.compact
    def __call__(self, z: jax.Array) -> Quantized:
        """The nearest codes of latents (B, h, w, E) (van den Oord et al. 2017, Eqs. 1 to 3)."""
        table = self.param("embedding", _small_uniform, (self.size, self.width))
        indices = nearest_codes(z, table)
        codes = table[indices]
        pulled = jnp.mean(jnp.square(z - jax.lax.stop_gradient(codes)), axis=(1, 2, 3))
        moved = jnp.mean(jnp.square(codes - jax.lax.stop_gradient(z)), axis=(1, 2, 3))
        loss = self.commitment_weight * pulled + self.codebook_weight * moved
        return Quantized(straight_through_of(z, codes), indices, loss)


class VQModel(ConvolutionalAutoencoder, layers.Presets):
    """Images <-> codes; fields besides those of `ConvolutionalAutoencoder`:

    Attributes:
        num_vq_embeddings: vectors of the codebook.
        vq_embed_dim: their length; None = latent_channels.
        norm_type: of the decoder, one of NORM_TYPES: "spatial" norms are modulated by the code.
        commitment_weight, codebook_weight: as in `Codebook`; the paper's are 0.25 and 1, the published networks' 1
            and 0.25.
    """

    latent_channels: int = 3
    num_vq_embeddings: int = 256
    vq_embed_dim: int | None = None
    norm_type: str = "group"
    commitment_weight: float = 0.25
    codebook_weight: float = 1.0

    presets = PRESETS

    def setup(self) -> None:
        """The two halves and the codebook between them."""
        layers.check_choices(self, norm_type=NORM_TYPES)
        layers.require(self, lambda value: value > 0, "must be above 0", "num_vq_embeddings", "vq_embed_dim")
        layers.require(self, lambda value: value <= 2**24, f"must be at most {2**24}", "num_vq_embeddings")
        layers.require(self, lambda value: value <= layers.WIDEST, f"must be at most {layers.WIDEST}", "vq_embed_dim")
        layers.require(self, lambda value: value >= 0, "must be 0 or more", "commitment_weight", "codebook_weight")
        body, width = self.body(), self.vq_embed_dim or self.latent_channels
        self.encoder, self.decoder = Encoder(body, self.latent_channels), Decoder(body, self.out_channels)
        self.quant_conv, self.post_quant_conv = conv(width, size=1), conv(self.latent_channels, size=1)
        self.codebook = Codebook(self.num_vq_embeddings, width, self.commitment_weight, self.codebook_weight)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Images (B, H, W, C) in [-1, 1] -> their reconstructions; it sows as `quantize`."""
        return self.decode(self.encode(images))

    def encode(self, images: jax.Array) -> jax.Array:
        """Images (B, H, W, C) in [-1, 1] -> latents (B, h, w, E) float32 before they become codes.

        Raises:
            UserError: the sides of the images do not halve often enough.
        """
        return self.quant_conv(self.encoder(images))

    def quantize(self, z: jax.Array) -> Quantized:
        """The codes of latents (B, h, w, E).

        It sows the extras "codes" (B, h, w), indices, and "codebook_loss" (B,); and the diagnostics of the batch
        "codebook_usage", the share of all codes that occur, and "codebook_perplexity", exp of the entropy of their
        frequencies.
        """
        found = self.codebook(z)
        self.sow(EXTRAS, "codes", found.indices)
        self.sow(EXTRAS, "codebook_loss", found.loss)
        usage, perplexity = statistics(found.indices, self.num_vq_embeddings)
        self.sow(DIAGNOSTICS, "codebook_usage", usage)
        self.sow(DIAGNOSTICS, "codebook_perplexity", perplexity)
        return found

    def decode(self, z: jax.Array, quantize: bool = True) -> jax.Array:
        """Latents (B, h, w, E), not normalized -> images (B, H, W, out_channels) around [-1, 1].

        Args:
            z: latents, or codes, which are their own codes.
            quantize: whether latents become codes first, and `quantize` sows.
        """
        codes = self.quantize(z).z if quantize else z
        return self.decoder(self.post_quant_conv(codes), codes if self.norm_type == "spatial" else None)


def _small_uniform(key: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """Between +-1 / rows, as the published codebooks begin."""
    return jax.random.uniform(key, shape, minval=-1 / shape[0], maxval=1 / shape[0])


def nearest_codes(z: jax.Array, table: jax.Array) -> jax.Array:
    """Indices (...) int32 of the rows of a table (N, E) nearest to vectors z (..., E), the first of equals."""
    z, table = (jax.lax.stop_gradient(x.astype(jnp.float32)) for x in (z, table))
    products = jnp.matmul(z, table.T, precision=jax.lax.Precision.HIGHEST)
    return jnp.argmin(jnp.sum(jnp.square(table), axis=-1) - 2 * products, axis=-1).astype(jnp.int32)


def statistics(indices: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """(share of `size` codes that occur among indices, exp of the entropy of their frequencies), each ()."""
    counts = jnp.zeros(size).at[indices.ravel()].add(1.0)
    share = counts / indices.size
    return jnp.mean(counts > 0), jnp.exp(-jnp.sum(jax.scipy.special.xlogy(share, share)))


build = VQModel
