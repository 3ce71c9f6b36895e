"""An autoencoder without a distribution: its latents are scaled by a learned positive gain and bounded to [-1, 1].

ArchiRF's: z = bound(gain * encoder(image)), image = decoder(z / gain). The body is Stable Diffusion's.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from archirf_jax.models import layers
from archirf_jax.models.autoencoder_body import Decoder, Encoder
from archirf_jax.models.latents import ConvolutionalAutoencoder, straight_through_of
from archirf_jax.models.layers import DIAGNOSTICS, EXTRAS

BOUNDS = ("clip", "tanh", "none")
# What makes a positive gain of any number, and the number that makes 1.
GAINS = {"exp": (jnp.exp, 0.0), "softplus": (jax.nn.softplus, math.log(math.e - 1))}

# "imagenet64": 64x64x3 -> 8x8x16, ArchiRF's; "tiny" is for images of 8 to 32 pixels on a CPU.
PRESETS: dict[str, dict[str, Any]] = {
    "tiny": dict(block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8, latent_channels=4),
    "imagenet64": dict(block_out_channels=(128, 256, 256, 256), latent_channels=16),
}


class BoundedAutoencoder(ConvolutionalAutoencoder, layers.Presets):
    """Images <-> bounded latents; fields besides those of `ConvolutionalAutoencoder`:

    Attributes:
        bound: one of BOUNDS; "none" leaves latents as they are.
        straight_through: whether gradients pass "clip" as if it were not there; otherwise those of clipped latents
            are 0, and nothing brings them back.
        gain: one of GAINS, which keeps the gain above 0; it starts at 1.
    """

    bound: str = "clip"
    straight_through: bool = True
    gain: str = "exp"

    presets = PRESETS

    def setup(self) -> None:
        """The two halves and the number that makes the gain."""
        layers.check_choices(self, bound=BOUNDS, gain=GAINS)
        body = self.body()
        self.encoder, self.decoder = Encoder(body, self.latent_channels), Decoder(body, self.out_channels)
        self.raw_gain = self.param("gain", lambda key: jnp.float32(GAINS[self.gain][1]))

    def __call__(self, images: jax.Array) -> jax.Array:
        """Images (B, H, W, C) in [-1, 1] -> their reconstructions."""
        return self.decode(self.encode(images))

    def encode(self, images: jax.Array) -> jax.Array:
        """Images (B, H, W, C) in [-1, 1] -> latents (B, h, w, latent_channels) float32, bounded.

        It sows the extras "unbounded", latents before the bound, and "saturated" (B,), how many of an image's lie
        beyond [-1, 1]; and the diagnostic "latent_gain".

        Raises:
            UserError: the sides of the images do not halve often enough.
        """
        gain = self._gain()
        z = self.encoder(images) * gain
        self.sow(EXTRAS, "unbounded", z)
        self.sow(EXTRAS, "saturated", jnp.mean(jnp.abs(z) > 1, axis=(1, 2, 3), dtype=jnp.float32))
        self.sow(DIAGNOSTICS, "latent_gain", jax.lax.stop_gradient(gain))
        return bounded(z, self.bound, self.straight_through)

    def decode(self, z: jax.Array) -> jax.Array:
        """Latents (B, h, w, latent_channels), not normalized -> images (B, H, W, out_channels) around [-1, 1]."""
        return self.decoder(z / self._gain())

    def _gain(self) -> jax.Array:
        return GAINS[self.gain][0](self.raw_gain)


def bounded(z: jax.Array, bound: str, straight_through: bool = True) -> jax.Array:
    """Latents within [-1, 1], by one of BOUNDS; fields as of `BoundedAutoencoder`."""
    if bound == "tanh":
        return jnp.tanh(z)
    if bound == "none":
        return z
    clipped = jnp.clip(z, -1, 1)
    return straight_through_of(z, clipped) if straight_through else clipped


build = BoundedAutoencoder
