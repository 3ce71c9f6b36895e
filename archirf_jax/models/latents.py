"""What an autoencoder encodes into: latents, their normal distributions, and how a diffusion model sees them.

Every autoencoder has `encode(images)`, `latent(encoded, noise)` and `decode(z)`; networks of noise know nothing of it.
"""

from __future__ import annotations

from typing import NamedTuple, Self

import flax.linen as nn
import jax
import jax.numpy as jnp

from archirf_jax.errors import UserError
from archirf_jax.models import layers
from archirf_jax.models.autoencoder_body import Body

LOG_VARIANCES = (-30.0, 20.0)  # beyond which they are clipped


class Gaussian(NamedTuple):
    """Independent normal distributions of latents (Kingma & Welling 2014, Sec. 3; Rombach et al. 2022, Sec. 3.1).

    Attributes:
        mean, logvar: (B, h, w, C) float32.
    """

    mean: jax.Array
    logvar: jax.Array

    @classmethod
    def of(cls, moments: jax.Array) -> Self:
        """Moments (B, h, w, 2C): means, then the logarithms of variances, which are clipped to LOG_VARIANCES."""
        mean, logvar = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
        return cls(mean, jnp.clip(logvar, *LOG_VARIANCES))

    def mode(self) -> jax.Array:
        """The most likely latents (B, h, w, C)."""
        return self.mean

    def sample(self, noise: jax.Array) -> jax.Array:
        """Latents (B, h, w, C) made of standard normal noise like the means."""
        return self.mean + jnp.exp(0.5 * self.logvar) * noise

    def kl(self) -> jax.Array:
        """Divergence (B,) from N(0, I), in nats, summed over each image's latents."""
        each = jnp.square(self.mean) + jnp.exp(self.logvar) - 1 - self.logvar
        return 0.5 * jnp.sum(each, axis=(1, 2, 3))


def straight_through_of(z: jax.Array, value: jax.Array) -> jax.Array:
    """`value`, exactly, whose gradient is taken for that of z, which has its shape (Bengio et al. 2013)."""
    return jax.lax.stop_gradient(value) + (z - jax.lax.stop_gradient(z))


class Autoencoder(nn.Module):
    """What all autoencoders share: how their latents are shifted and scaled for a diffusion model.

    Attributes:
        latent_channels: C of the latents.
        out_channels: channels of the images.
        scaling_factor, shift_factor: a diffusion model sees (z - shift_factor) * scaling_factor.
        latents_mean, latents_std: one a channel of the latents; it sees (z - mean) / std of that, before the factor.
        dtype: compute dtype; norms, softmax and last layers stay float32.
    """

    latent_channels: int = 4
    out_channels: int = 3
    scaling_factor: float = 1.0
    shift_factor: float = 0.0
    latents_mean: tuple[float, ...] | None = None
    latents_std: tuple[float, ...] | None = None
    dtype: jnp.dtype = jnp.float32

    def latent(self, encoded: jax.Array, noise: jax.Array | None = None) -> jax.Array:
        """Latents (B, h, w, C) of what `encode` gives; noise like them makes a sample of a distribution."""
        del noise
        return encoded

    def normalized(self, z: jax.Array) -> jax.Array:
        """Latents (B, h, w, C) as a diffusion model sees them."""
        mean, std = self._statistics()
        return (z - self.shift_factor - mean) * (self.scaling_factor / std)

    def denormalized(self, z: jax.Array) -> jax.Array:
        """The inverse of `normalized`."""
        mean, std = self._statistics()
        return z * (std / self.scaling_factor) + mean + self.shift_factor

    def _statistics(self) -> tuple[jax.Array, jax.Array]:
        given = {"latents_mean": self.latents_mean, "latents_std": self.latents_std}
        for name, values in given.items():
            if values is not None and len(values) != self.latent_channels:
                raise UserError(f"model.{name}", values, f"must hold {self.latent_channels} numbers, one a channel")
        layers.require(self, lambda value: value > 0, "must be above 0", "scaling_factor")
        layers.require(self, lambda values: min(values) > 0, "must be above 0", "latents_std")
        mean, std = (jnp.zeros(()) if values is None else jnp.asarray(values, jnp.float32) for values in given.values())
        return mean, jnp.ones(()) if self.latents_std is None else std


class ConvolutionalAutoencoder(Autoencoder):
    """An autoencoder with the body of `autoencoder_body`.

    Attributes:
        block_out_channels, layers_per_block, encoder_layers, norm_num_groups, attention_levels,
            mid_block_add_attention, patch_size, remat: as in `Body`.
    """

    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    encoder_layers: int | None = None
    norm_num_groups: int = 32
    attention_levels: tuple[int, ...] = ()
    mid_block_add_attention: bool = True
    patch_size: int = 1
    remat: bool = False

    @property
    def factor(self) -> int:
        """How many times smaller the latents' sides are than the images'."""
        return self.body().factor

    def features(self, images: jax.Array) -> list[jax.Array]:
        """Images (B, H, W, out_channels) in [-1, 1] -> the encoder's map (B, h, w, D) of every level, finest first."""
        maps: list[jax.Array] = self.encoder(images, levels=True)
        return maps

    def body(self) -> Body:
        """The fields of both halves.

        Raises:
            UserError: one is out of its range.
        """
        layers.require(self, lambda value: value > 0, "must be above 0", "latent_channels", "out_channels")
        layers.require(
            self, lambda value: value <= layers.WIDEST, f"must be at most {layers.WIDEST}", "latent_channels"
        )
        return Body.of(self)
