"""The EDM2 U-Net with EDM on labelled images: the data of configs/dit_rf.py, another network and process.

    python -m archirf_jax.main --config=configs/edm2_edm.py --workdir=runs/edm2_edm            digits, the default
    python -m archirf_jax.main --config=configs/edm2_edm.py:cifar10 --workdir=runs/edm2_edm_cifar10

Weights are held at unit size, the expected loss of each sigma is learned and weighs it, noise is as published
(Karras et al. 2024, Table 6). Learning rates are large because weights of unit size are.
"""

from ml_collections import ConfigDict

from archirf_jax.models.edm2_unet import PRESETS
from configs import dit_edm

SMALL = dict(model_channels=128, channel_mult=(1, 2, 2), num_blocks=2, attention_levels=(1, 2), channels_per_head=64)
MODELS = {
    "digits": PRESETS["tiny"],
    "mnist": PRESETS["tiny"] | {"model_channels": 64, "channels_per_head": 64},
    "cifar10": PRESETS["tiny"] | SMALL | {"dropout": 0.13},
    "openmoji": PRESETS["tiny"] | SMALL | {"channel_mult": (1, 2, 3, 4), "attention_levels": (2, 3)},
    "imagenet64": PRESETS["tiny"] | PRESETS["S"] | dict(num_blocks=3, channel_mult=(1, 2, 3, 4)),
}


def get_config(variant: str = "digits") -> ConfigDict:
    """The configuration of one of the variants of configs/dit_rf.py."""
    config = dit_edm.get_config(variant)
    dtype = config.model.dtype
    with config.unlocked():
        config.model = model = ConfigDict({"dropout": 0.0} | MODELS[variant])
        model.name = "edm2_unet"
        model.time_scale = 1.0  # what network times are divided by
        model.remat = False  # compute activations again instead of keeping them
        model.dtype = dtype
        if variant == "imagenet64":
            model.update(attention_levels=(2, 3), channels_per_head=64)
        config.process.update(log_mean=-0.4, log_std=1.0, time_scale=1.0, uncertainty=True)
        config.optimizer.update(learning_rate=1e-2, b2=0.99, clip_norm=0.0)
        if variant != "digits":
            # As published, in images: the rate rises over 10 million and falls after 70,000 (35,000) batches of 2,048.
            published = {"imagenet64": 35_000}.get(variant, 70_000) * 2048
            warmup, reference = 10_000_000 // config.batch_size, published // config.batch_size
            config.schedule.update(name="inverse_sqrt", warmup_steps=warmup, reference_steps=reference)
            config.ema.update(stds=(0.05, 0.1), snapshot_steps=config.steps // 50)
    return config
