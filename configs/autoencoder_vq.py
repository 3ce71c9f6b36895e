"""VQGAN's autoencoder: every pixel of a latent is the nearest of a set of learned vectors.

    python -m archirf_jax.main --config=configs/autoencoder_vq.py --workdir=runs/vq                # digits, the default
    python -m archirf_jax.main --config=configs/autoencoder_vq.py:openmoji --workdir=runs/vq_openmoji

Variants: digits, mnist, cifar10, openmoji, imagenet64. Only imagenet64 has LPIPS (weights in the run runs/lpips) and a
discriminator. Fields of the objective that are not listed are in docs/autoencoders.md, and can be added by flags.

Cost: digits 2 minutes on 2 CPU cores; the others are not measured.
Expect: digits, PSNR 28.4 of the training images; the others are not measured.
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
CODES = {"digits": 64, "mnist": 256, "cifar10": 1024, "openmoji": 1024, "imagenet64": 8192}


def get_config(variant: str = "digits") -> ConfigDict:
    """The configuration of one of WIDTHS."""
    config = default.get_config(default.choose(variant, WIDTHS))
    large = variant == "imagenet64"
    with config.unlocked():
        config.task = "autoencoder"
        config.model = model = ConfigDict({"name": "vq_model"})
        model.block_out_channels = WIDTHS[variant]  # of each level, the finest first; each level but the last halves
        model.layers_per_block = 2 if large else 1  # residual blocks of a level; the decoder has one more
        model.encoder_layers = None  # those of the encoder, if it has another number
        model.norm_num_groups = 32 if large else 8  # groups of channels that are normalized together
        model.attention_levels = ()  # levels whose blocks are followed by attention
        model.mid_block_add_attention = True  # attention at the coarsest level
        model.patch_size = 1  # squares of pixels that the first level takes for one
        model.latent_channels = 4
        model.num_vq_embeddings = CODES[variant]  # vectors of the codebook
        model.vq_embed_dim = None  # their length; None = latent_channels
        model.norm_type = "group"  # of the decoder; spatial: modulated by the code
        model.commitment_weight = 0.25  # of the distance as it pulls latents to codes
        model.codebook_weight = 1.0  # of the distance as it pulls codes to latents
        model.scaling_factor = 1.0
        model.dtype = "bfloat16" if large else "float32"

        config.objective = objective = ConfigDict({"name": "reconstruction"})
        objective.l1_weight = 1.0  # mean absolute error
        objective.l2_weight = 0.0  # mean square error
        objective.lpips_weight = 0.0  # needs config.frozen.lpips
        objective.codebook_weight = 1.0  # of the codebook's loss
        objective.restart_below = 0.0  # usage below which a code is replaced by a latent; 1 = the mean of all codes
        objective.restart_decay = 0.99  # of the moving average of usage
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
