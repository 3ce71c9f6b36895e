"""The EDM2 U-Net with EDM on labelled images: weights are held at unit size, the loss of each sigma is learned.

    python -m archirf_jax.main --config=configs/edm2_edm.py --workdir=runs/edm2_edm            # digits, the default
    python -m archirf_jax.main --config=configs/edm2_edm.py:cifar10 --workdir=runs/edm2_edm_cifar10

Variants: digits, mnist, cifar10, openmoji, imagenet64. The noise is the published one (Karras et al. 2024, Table 6).
Learning rates are large because weights of unit size are.

Cost: not measured.
Expect: not measured.
"""

from ml_collections import ConfigDict

from archirf_jax.models.edm2_unet import PRESETS
from configs import default

SMALL = dict(model_channels=128, channel_mult=(1, 2, 2), num_blocks=2, attention_levels=(1, 2), channels_per_head=64)
NETWORKS = {
    "digits": PRESETS["tiny"],
    "mnist": PRESETS["tiny"] | {"model_channels": 64, "channels_per_head": 64},
    "cifar10": PRESETS["tiny"] | SMALL | {"dropout": 0.13},
    "openmoji": PRESETS["tiny"] | SMALL | {"channel_mult": (1, 2, 3, 4), "attention_levels": (2, 3)},
    "imagenet64": PRESETS["S"]
    | dict(num_blocks=3, channel_mult=(1, 2, 3, 4), attention_levels=(2, 3), channels_per_head=64),
}


def get_config(variant: str = "digits") -> ConfigDict:
    """The configuration of one of NETWORKS."""
    config = default.get_config(default.choose(variant, NETWORKS))
    with config.unlocked():
        config.model = model = ConfigDict({"name": "edm2_unet", "dropout": 0.0} | NETWORKS[variant])
        model.time_scale = 1.0  # network times are divided by it
        model.remat = False  # compute activations again instead of keeping them
        # Of the computation: float32, bfloat16 or float16, which scales its losses.
        model.dtype = "float32" if variant in ("digits", "mnist") else "bfloat16"

        config.process = process = ConfigDict({"name": "edm"})
        process.sigma_data = 0.75 if variant == "digits" else 0.5  # standard deviation of the images
        process.sigma_min = 0.002  # smallest sigma of sampling
        process.sigma_max = 80.0  # sigma at t = 1
        process.time_scale = 1.0  # the network is conditioned on time_scale ln(sigma) / 4

        config.objective = objective = ConfigDict({"name": "uncertainty"})  # the learned loss of a sigma weighs it
        objective.channels = 128  # random features of sigma, of which the learned loss is a function
        objective.time_distribution = "log_normal"  # of sigma
        objective.P_mean = -0.4  # mean of ln(sigma)
        objective.P_std = 1.0  # standard deviation of ln(sigma)
        objective.condition_dropout = 0.1  # share of examples trained without label

        config.optimizer.update(name="adamw", learning_rate=1e-2, b2=0.99, clip_norm=None)
        if variant == "digits":
            config.schedule.update(name="cosine", warmup_steps=100)
            config.ema.decay = 0.998
        else:
            # As published, in images: the rate rises over 10 million and falls after 70,000 (35,000) batches of 2,048.
            images = 2048 * (35_000 if variant == "imagenet64" else 70_000)
            warmup, reference = 10_000_000 // config.batch_size, images // config.batch_size
            config.schedule.update(name="inverse_sqrt", warmup_steps=warmup, reference_steps=reference)
            config.ema.update(sigma_rel=(0.05, 0.1), snapshot_steps=config.steps // 50)
        config.sample.update(solver={"name": "edm"}, grid={"name": "karras"}, steps=18)
    return config
