"""ADM's U-Net with DDPM on labelled images: the data and process of configs/dit_ddpm.py, another network.

    python -m archirf_jax.main --config=configs/adm_ddpm.py --workdir=runs/adm_ddpm            digits, the default
    python -m archirf_jax.main --config=configs/adm_ddpm.py:cifar10 --workdir=runs/adm_ddpm_cifar10

imagenet64 is the published network and cosine schedule (Dhariwal & Nichol 2021, Table 11): 296 M parameters.
"""

from ml_collections import ConfigDict

from archirf_jax.models.adm_unet import PRESETS
from configs import dit_ddpm

SMALL = dict(model_channels=128, num_res_blocks=2, channel_mult=(1, 2, 2), attention_downsamples=(2, 4), dropout=0.1)
MODELS = {
    "digits": PRESETS["tiny"],
    "mnist": PRESETS["tiny"] | {"model_channels": 64},
    "cifar10": PRESETS["tiny"] | SMALL,
    "openmoji": PRESETS["tiny"] | SMALL | {"channel_mult": (1, 2, 3, 4), "attention_downsamples": (4, 8)},
    "imagenet64": PRESETS["imagenet64"],
}


def get_config(variant: str = "digits") -> ConfigDict:
    """The configuration of one of the variants of configs/dit_rf.py."""
    config = dit_ddpm.get_config(variant)
    dtype = config.model.dtype
    with config.unlocked():
        config.model = model = ConfigDict({"dropout": 0.0} | MODELS[variant])
        model.name = "adm_unet"
        model.learn_sigma = True
        model.remat = variant == "imagenet64"  # compute activations again instead of keeping them
        model.dtype = dtype
        if variant == "imagenet64":
            config.process.schedule = "cosine"
    return config
