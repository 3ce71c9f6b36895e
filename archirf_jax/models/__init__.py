"""Networks: pure Linen modules, one file each, found by the name of the file; each file ends in `build`.

Networks of noisy images are called (x, t, condition) with network times t (B,) and a dict of conditions, and return one
array; autoencoders have `encode`, `latent` and `decode`; text encoders are called (ids, mask) and return a dict of
arrays: "tokens" (B, L, D), and what else they know of a text.
"""

from __future__ import annotations

from archirf_jax import lazy

_HOMES = {
    "ADMClassifier": ".adm_classifier",
    "ADMUNet": ".adm_unet",
    "AutoencoderKL": ".autoencoder_kl",
    "AutoencoderTiny": ".autoencoder_tiny",
    "BERT": ".bert",
    "BoundedAutoencoder": ".bounded_autoencoder",
    "CLIPText": ".clip_text",
    "Captioned": ".captioned",
    "DiT": ".dit",
    "EDM2UNet": ".edm2_unet",
    "Gaussian": ".latents",
    "LPIPS": ".lpips",
    "LatentUNet": ".latent_unet",
    "MMDiT": ".mmdit",
    "PatchGAN": ".patchgan",
    "ProjectedDiscriminator": ".projected_discriminator",
    "T5Encoder": ".t5_encoder",
    "TextTransformer": ".text_transformer",
    "Uncertain": ".uncertainty",
    "VQModel": ".vq_model",
    "bind": ".binding",
    "call": ".binding",
    "init": ".binding",
}
__all__ = list(_HOMES)
__getattr__ = lazy.getter(__name__, _HOMES)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
