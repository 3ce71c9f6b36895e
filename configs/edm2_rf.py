"""The EDM2 U-Net with rectified flow on labelled images: the data and process of configs/dit_rf.py.

    python -m archirf_jax.main --config=configs/edm2_rf.py --workdir=runs/edm2_rf              digits, the default
    python -m archirf_jax.main --config=configs/edm2_rf.py:cifar10 --workdir=runs/edm2_rf_cifar10

The network is told 1000 t, as any other, and divides it by its own time_scale: its features want times of about 1.
"""

from ml_collections import ConfigDict

from configs import dit_rf, edm2_edm


def get_config(variant: str = "digits") -> ConfigDict:
    """The configuration of one of the variants of configs/dit_rf.py."""
    config, other = dit_rf.get_config(variant), edm2_edm.get_config(variant)
    with config.unlocked():
        config.model = other.model
        config.model.time_scale = 500.0
        config.optimizer, config.schedule, config.ema = other.optimizer, other.schedule, other.ema
    return config
