"""Latent diffusion's autoencoder: latents are normal distributions, held near N(0, I) by a small weight.

    python -m archirf_jax.main --config=configs/autoencoder_kl.py --workdir=runs/kl                # digits, the default
    python -m archirf_jax.main --config=configs/autoencoder_kl.py:openmoji --workdir=runs/kl_openmoji

Variants: digits, mnist, cifar10, openmoji, imagenet64. Only imagenet64 has LPIPS (weights in the run runs/lpips) and a
discriminator. Fields of the objective that are not listed are in docs/autoencoders.md, and can be added by flags.

Cost: digits 2 minutes on 2 CPU cores; the others are not measured.
Expect: digits, PSNR 35.9 of the training images; the others are not measured.
"""

from ml_collections import ConfigDict

from configs import default

WIDTHS = {
    "digits": (16, 32),
    "mnist": (32, 64, 64),
    "cifar10": (32, 64, 64),
    "openmoji": (32, 64, 128, 128),
    "imagenet64": (128, 256, 256, 256),
}


def get_config(variant: str = "digits") -> ConfigDict:
    """The configuration of one of WIDTHS."""
    config = default.get_config(default.choose(variant, WIDTHS))
    large = variant == "imagenet64"
    with config.unlocked():
        config.task = "autoencoder"
        config.model = model = ConfigDict({"name": "autoencoder_kl"})
        model.block_out_channels = WIDTHS[variant]  # of each level, the finest first; each level but the last halves
        model.layers_per_block = 2 if large else 1  # residual blocks of a level; the decoder has one more
        model.encoder_layers = None  # those of the encoder, if it has another number
        model.norm_num_groups = 32 if large else 8  # groups of channels that are normalized together
        model.attention_levels = ()  # levels whose blocks are followed by attention
        model.mid_block_add_attention = True  # attention at the coarsest level
        model.patch_size = 1  # squares of pixels that the first level takes for one
        model.latent_channels = 16 if variant in ("openmoji", "imagenet64") else 4
        model.use_quant_conv = True  # a 1x1 convolution after the encoder
        model.use_post_quant_conv = True  # and one before the decoder
        model.scaling_factor = 1.0  # of latents as a diffusion model sees them, less shift_factor
        model.shift_factor = 0.0
        model.dtype = "bfloat16" if large else "float32"

        config.objective = objective = ConfigDict({"name": "reconstruction"})
        objective.l1_weight = 1.0  # mean absolute error
        objective.l2_weight = 0.0  # mean square error
        objective.lpips_weight = 0.0  # needs config.frozen.lpips
        objective.kl_weight = 1e-6  # of the divergence from N(0, I)
        objective.adversarial_weight = 0.0
        objective.adversarial_start = 0  # step from which the discriminator counts and is trained
        objective.discriminator = None  # or {"name": "patchgan", ...}

        config.optimizer.update(name="adam", learning_rate=2e-3 if variant == "digits" else 5e-4, clip_norm=1.0)
        config.schedule.update(name="cosine", warmup_steps=100)
        config.ema.decay = 0.999
        config.batch_size = 64
        config.sample.update(classes=10, per_class=1)
        if large:
            objective.update(lpips_weight=1.0, adversarial_weight=0.5, adversarial_start=50_000)
            objective.discriminator = ConfigDict({"name": "patchgan", "width": 64, "depth": 3})
            config.frozen.lpips = "runs/lpips"
            config.optimizer.learning_rate = 1e-4
            config.schedule.name = "constant"
    return config
