"""The autoencoder of latent diffusion, whose latents are normal distributions (Rombach et al. 2022, Sec. 3.1)."""

from __future__ import annotations

from typing import Any

import jax

from archirf_jax.models import layers
from archirf_jax.models.autoencoder_body import Decoder, Encoder
from archirf_jax.models.autoencoder_layers import conv
from archirf_jax.models.latents import ConvolutionalAutoencoder, Gaussian
from archirf_jax.models.layers import EXTRAS

_UNQUANTIZED = dict(latent_channels=16, use_quant_conv=False, use_post_quant_conv=False)
# The published autoencoders; "tiny" is this project's own, for images of 8 to 32 pixels on a CPU.
PRESETS: dict[str, dict[str, Any]] = {
    "tiny": dict(block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8),
    "sd": dict(scaling_factor=0.18215),
    "sdxl": dict(scaling_factor=0.13025),
    "sd3": _UNQUANTIZED | dict(scaling_factor=1.5305, shift_factor=0.0609),
    "flux": _UNQUANTIZED | dict(scaling_factor=0.3611, shift_factor=0.1159),
}


class AutoencoderKL(ConvolutionalAutoencoder, layers.Presets):
    """Images <-> normal distributions of latents; fields besides those of `ConvolutionalAutoencoder`:

    Attributes:
        use_quant_conv: whether a 1x1 convolution follows the encoder.
        use_post_quant_conv: whether one comes before the decoder.
    """

    use_quant_conv: bool = True
    use_post_quant_conv: bool = True

    presets = PRESETS

    def setup(self) -> None:
        """The two halves and what is between them."""
        body, moments = self.body(), 2 * self.latent_channels
        self.encoder, self.decoder = Encoder(body, moments), Decoder(body, self.out_channels)
        if self.use_quant_conv:
            self.quant_conv = conv(moments, size=1)
        if self.use_post_quant_conv:
            self.post_quant_conv = conv(self.latent_channels, size=1)

    def __call__(self, images: jax.Array, noise: jax.Array | None = None) -> jax.Array:
        """Images (B, H, W, C) in [-1, 1] -> their reconstructions, by the mode or, given noise, by a sample."""
        return self.decode(self.latent(self.encode(images), noise))

    def encode(self, images: jax.Array) -> jax.Array:
        """Images (B, H, W, C) in [-1, 1] -> moments (B, h, w, 2 latent_channels) float32, for `Gaussian.of`.

        Raises:
            UserError: the sides of the images do not halve often enough.
        """
        h = self.encoder(images)
        return self.quant_conv(h) if self.use_quant_conv else h

    def decode(self, z: jax.Array) -> jax.Array:
        """Latents (B, h, w, latent_channels), not normalized -> images (B, H, W, out_channels) around [-1, 1]."""
        return self.decoder(self.post_quant_conv(z) if self.use_post_quant_conv else z)

    def latent(self, encoded: jax.Array, noise: jax.Array | None = None) -> jax.Array:
        """Moments -> the mode of the latents (B, h, w, latent_channels) or, given noise like it, a sample.

        It sows the extra "kl" (B,): see `Gaussian.kl`.
        """
        distribution = Gaussian.of(encoded)
        self.sow(EXTRAS, "kl", distribution.kl())
        return distribution.mode() if noise is None else distribution.sample(noise)


build = AutoencoderKL
