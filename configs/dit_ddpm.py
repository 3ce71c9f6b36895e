"""DiT with DDPM on labelled images: the data, network and training of configs/dit_rf.py, another process.

    python -m archirf_jax.main --config=configs/dit_ddpm.py --workdir=runs/dit_ddpm            digits, the default
    python -m archirf_jax.main --config=configs/dit_ddpm.py:cifar10 --workdir=runs/dit_ddpm_cifar10

As in the DiT paper, the network predicts the noise and learns the variance (Peebles & Xie 2022, Sec. 4).
"""

from ml_collections import ConfigDict

from configs import default, dit_rf


def get_config(variant: str = "digits") -> ConfigDict:
    """The configuration of one of the variants of configs/dit_rf.py."""
    config = dit_rf.get_config(variant)
    with config.unlocked():
        config.process = process = ConfigDict()
        process.name = "ddpm"
        process.schedule = "linear"  # of beta: linear, scaled_linear or cosine
        process.steps = 1000  # T
        process.beta_start = 0.0  # first beta; 0 = the schedule's published one, times 1000 / T
        process.beta_end = 0.0  # last beta; 0 = the schedule's published one, times 1000 / T
        process.prediction = "eps"  # what the network learns: eps, x0 or v
        process.variance = "learned_range"  # of ancestral steps: fixed_small, fixed_large or learned_range
        process.likelihood = "exact"  # of 8-bit images in the bound: exact, or adm for the published approximation
        process.bound_weight = 0.001  # of T times the variational bound, which trains the variance
        process.respacing = ""  # train on these steps alone, such as "250"; "" = all
        process.time_sampling = "uniform"  # or loss_second_moment
        process.weighting = "none"  # or min_snr
        process.min_snr_gamma = 5.0  # largest signal-to-noise ratio that counts, for min_snr
        process.condition_dropout = default.get_config().process.condition_dropout
        config.model.learn_sigma = True
        config.sample.grid = "karras"
    return config
