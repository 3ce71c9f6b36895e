"""ADM's classifier of noisy images, which guides the samplers of configs/adm_ddpm.py and configs/dit_ddpm.py.

    python -m archirf_jax.main --config=configs/adm_classifier.py --workdir=runs/classifier    digits, the default
    python -m archirf_jax.sample --workdir=runs/adm_ddpm --classifier=runs/classifier --classifier_scale=2

Optimizer and weight decay as published (Dhariwal & Nichol 2021, App. B); a run without noise is not meant.
"""

from ml_collections import ConfigDict

from archirf_jax.models.adm_classifier import PRESETS
from configs import adm_ddpm

MODELS = {
    "digits": PRESETS["tiny"],
    "mnist": PRESETS["tiny"] | {"model_channels": 64},
    "cifar10": PRESETS["tiny"] | {"model_channels": 64, "channel_mult": (1, 2, 2)},
    "openmoji": PRESETS["imagenet64"] | {"model_channels": 64, "num_res_blocks": 2},
    "imagenet64": PRESETS["imagenet64"],
}


def get_config(variant: str = "digits") -> ConfigDict:
    """The configuration of one of the variants of configs/dit_rf.py."""
    config = adm_ddpm.get_config(variant)
    dtype = config.model.dtype
    with config.unlocked():
        config.task = "classifier"
        config.model = model = ConfigDict({"dropout": 0.0} | MODELS[variant])
        model.name = "adm_classifier"
        model.image_size = config.data.get_ref("image_size")  # its attention pool takes one size alone
        model.remat = False
        model.dtype = dtype
        config.optimizer.weight_decay = 0.05
        config.optimizer.learning_rate = 3e-4 if variant != "digits" else 1e-3
    return config
