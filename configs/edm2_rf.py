"""The EDM2 U-Net with rectified flow and SD3's logit-normal times, on labelled images, in pixels.

    python -m archirf_jax.main --config=configs/edm2_rf.py --workdir=runs/edm2_rf              # digits, the default
    python -m archirf_jax.main --config=configs/edm2_rf.py:cifar10 --workdir=runs/edm2_rf_cifar10

Variants: digits, mnist, cifar10, openmoji, imagenet64. Weights are held at unit size, and learning rates are large
because of it. The network is conditioned on 1000 t and divides that by 500: its features want times of about 1.

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
        model.time_scale = 500.0  # network times are divided by it
        model.remat = False  # compute activations again instead of keeping them
        # Of the computation: float32, bfloat16 or float16, which scales its losses.
        model.dtype = "float32" if variant in ("digits", "mnist") else "bfloat16"

        config.process = ConfigDict(
            {
                "name": "rectified_flow",
                "path": "linear",
                "prediction": "velocity",
                "time_scale": 1000.0,
                "towards": "noise",
            }
        )
        config.objective.update(name="regression", time_distribution="logit_normal", condition_dropout=0.1)

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
        config.sample.update(solver={"name": "dpmpp_2m"}, grid={"name": "uniform"}, steps=20)
    return config
