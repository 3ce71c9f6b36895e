"""ArchiRF's autoencoder: bounded latents of one size for a diffusion model to work in.

    python -m archirf_jax.main --config=configs/autoencoder.py --workdir=runs/ae                   # digits, the default
    python -m archirf_jax.main --config=configs/autoencoder.py:openmoji --workdir=runs/ae_openmoji

| variant    | images                 | latents | network and losses                                             |
|------------|------------------------|---------|----------------------------------------------------------------|
| digits     | 1,797 grey 8x8         | 4x4x4   | tiny; L1                                                       |
| mnist      | 60,000 grey 28x28      | 7x7x4   | 0.9 M parameters; L1                                           |
| cifar10    | 50,000 colour 32x32    | 8x8x4   | 0.9 M parameters; L1                                           |
| openmoji   | 3,402 colour 64x64     | 8x8x16  | 9.6 M parameters; L1 and L2                                    |
| imagenet64 | 1,281,167 colour 64x64 | 8x8x16  | ArchiRF's: L1, LPIPS and a discriminator from step 50,000 on;  |
|            |                        |         | imports LPIPS's weights into runs/lpips before                 |

Cost: digits 2 minutes and openmoji 27 to 45 (1,900 steps of 0.8 seconds in a fast hour) on 2 CPU cores; the others
are not measured.
Expect: digits, PSNR 36.7 of the training images, 0.5 % of the latents clipped; openmoji, PSNR 28.5 of the test images
(evaluate --metrics=psnr --split=test; 33 in training); the others are not measured.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(variant: str = "digits") -> ConfigDict:
    """The configuration of one of the data sets."""
    config = default.get_config(default.choose(variant, VARIANTS))
    with config.unlocked():
        config.task = "autoencoder"
        config.model = model = ConfigDict({"name": "bounded_autoencoder"})
        model.block_out_channels = (16, 32)  # width of each level, the finest first; each level but the last halves
        model.layers_per_block = 1  # residual blocks of a level; the decoder has one more
        model.encoder_layers = None  # those of the encoder, if it has another number
        model.norm_num_groups = 8  # groups of channels that are normalized together
        model.attention_levels = ()  # levels whose blocks are followed by attention
        model.mid_block_add_attention = True  # attention at the coarsest level
        model.patch_size = 1  # squares of pixels that the first level takes for one
        model.latent_channels = 4
        model.bound = "clip"  # of the latents: clip to [-1, 1], tanh or none
        model.straight_through = (
            False  # True: gradients pass a clip as if it were not there, and latents become -1 or 1
        )
        model.gain = "exp"  # what keeps the learned gain of the latents positive: exp or softplus
        model.dtype = "float32"

        config.objective = objective = ConfigDict({"name": "reconstruction"})
        objective.l1_weight = 1.0  # mean absolute error
        objective.l2_weight = 0.0  # mean square error
        objective.ms_ssim_weight = 0.0  # structural similarity at several scales
        objective.lpips_weight = 0.0  # needs config.frozen.lpips
        objective.learned_variance = False
        objective.kl_weight = 1e-6  # of autoencoder_kl
        objective.codebook_weight = 1.0  # of vq_model
        objective.std_weight = 0.01  # of the distance of each channel's standard deviation from std_target
        objective.mean_weight = 0.01  # of the distance of its mean from 0
        objective.std_target = 0.718  # of a unit Gaussian that is clipped to [-1, 1]
        objective.std_measured = "before"  # the bound, which brings clipped latents back, or after it
        objective.perturbation = 0.0  # noise on latents before they are decoded
        objective.adversarial_weight = 0.0
        objective.adversarial_start = 0  # step from which the discriminator counts and is trained
        objective.adversarial_loss = "hinge"  # hinge or logistic
        objective.adaptive = True  # weigh by the slopes at the decoder's last layer
        objective.r1_weight = 0.0
        objective.discriminator = None  # or {"name": "patchgan", ...}; projected_discriminator needs frozen.features
        objective.augment = ()  # of what the discriminator sees: "color", "translation", "cutout"

        config.optimizer.update(name="adam", learning_rate=1e-4, clip_norm=1.0)
        config.schedule.warmup_steps = 100
        config.ema.decay = 0.999
        config.sample.update(classes=10, per_class=1)
        VARIANTS[variant](config)
    return config


def _digits(config: ConfigDict) -> None:
    config.update(steps=2000, batch_size=64)
    config.optimizer.learning_rate = 2e-3
    config.schedule.name = "cosine"


def _small(config: ConfigDict) -> None:
    config.model.block_out_channels = (32, 64, 64)
    config.optimizer.learning_rate = 5e-4


def _openmoji(config: ConfigDict) -> None:
    config.update(steps=1900, batch_size=16)
    config.data.update(split="train", flip=True)
    config.model.update(patch_size=2, block_out_channels=(48, 96, 192), latent_channels=16, bound="none")
    config.model.encoder_layers = 5  # deep, as the latents of a set are made once
    config.objective.l2_weight = 3.0
    config.optimizer.update(name="muon", learning_rate=2e-3)  # which Adam needs several times the steps for
    config.schedule.name = "cosine"
    config.ema.decay = 0.998
    config.sample.every_steps = 500
    config.checkpoint.every_steps = 200


def _imagenet64(config: ConfigDict) -> None:
    config.update(steps=400_000, batch_size=64)
    config.data.flip = True
    config.model.update(block_out_channels=(128, 256, 256, 256), layers_per_block=2, norm_num_groups=32)
    config.model.update(latent_channels=16, dtype="bfloat16")
    objective = config.objective
    objective.update(lpips_weight=1.0, adversarial_weight=0.125, adversarial_start=50_000)
    objective.discriminator = ConfigDict({"name": "patchgan", "width": 64, "depth": 3})
    config.frozen.lpips = "runs/lpips"


VARIANTS = {"digits": _digits, "mnist": _small, "cifar10": _small, "openmoji": _openmoji, "imagenet64": _imagenet64}
