"""DiT with EDM on labelled images: the data, network and training of configs/dit_rf.py, another process.

    python -m archirf_jax.main --config=configs/dit_edm.py --workdir=runs/dit_edm            digits, the default
    python -m archirf_jax.main --config=configs/dit_edm.py:cifar10 --workdir=runs/dit_edm_cifar10

Preconditioning, noise and sampler are those of Karras et al. 2022, Table 1. The network is told 250 ln(sigma) / 4,
about -400 to 275, as DiT's time embedding expects numbers of hundreds.
"""

from ml_collections import ConfigDict

from configs import default, dit_rf


def get_config(variant: str = "digits") -> ConfigDict:
    """The configuration of one of the variants of configs/dit_rf.py."""
    config = dit_rf.get_config(variant)
    with config.unlocked():
        config.process = process = ConfigDict()
        process.name = "edm"
        process.sigma_data = 0.75 if variant == "digits" else 0.5  # standard deviation of the images
        process.sigma_min = 0.002  # smallest sigma that is sampled with
        process.sigma_max = 80.0  # sigma at t = 1
        process.log_mean = -1.2  # mean of ln(sigma) in training
        process.log_std = 1.2  # standard deviation of ln(sigma) in training
        process.time_scale = 250.0  # the network is told time_scale ln(sigma) / 4
        process.uncertainty = False  # learn the expected loss of each sigma, which then weighs them (EDM2)
        process.uncertainty_channels = 128  # random features of sigma that it is a function of
        process.condition_dropout = default.get_config().process.condition_dropout
        config.sample.solver = "edm"
        config.sample.grid = "karras"
        config.sample.steps = 18
    return config
