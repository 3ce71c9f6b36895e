"""ADM's U-Net with DDPM on labelled images: it predicts the noise and learns the variance.

    python -m archirf_jax.main --config=configs/adm_ddpm.py --workdir=runs/adm_ddpm            # digits, the default
    python -m archirf_jax.main --config=configs/adm_ddpm.py:cifar10 --workdir=runs/adm_ddpm_cifar10

Variants: digits, mnist, cifar10, openmoji, imagenet64. imagenet64 is the published network and cosine schedule
(Dhariwal & Nichol 2021, Table 11): 296 M parameters.

Cost: not measured.
Expect: not measured.
"""

from ml_collections import ConfigDict

from archirf_jax.models.adm_unet import PRESETS
from configs import default

SMALL = dict(model_channels=128, num_res_blocks=2, channel_mult=(1, 2, 2), attention_downsamples=(2, 4), dropout=0.1)
NETWORKS = {
    "digits": PRESETS["tiny"],
    "mnist": PRESETS["tiny"] | {"model_channels": 64},
    "cifar10": PRESETS["tiny"] | SMALL,
    "openmoji": PRESETS["tiny"] | SMALL | {"channel_mult": (1, 2, 3, 4), "attention_downsamples": (4, 8)},
    "imagenet64": PRESETS["imagenet64"],
}
LEARNING_RATES = {"digits": 2e-3, "mnist": 3e-4, "cifar10": 2e-4, "openmoji": 2e-4, "imagenet64": 1e-4}


def get_config(variant: str = "digits") -> ConfigDict:
    """The configuration of one of NETWORKS."""
    config = default.get_config(default.choose(variant, NETWORKS))
    with config.unlocked():
        config.model = model = ConfigDict({"name": "adm_unet", "dropout": 0.0} | NETWORKS[variant])
        model.learn_sigma = True  # twice the channels: the process learns the variance
        model.remat = variant == "imagenet64"  # compute activations again instead of keeping them
        # Of the computation: float32, bfloat16 or float16, which scales its losses.
        model.dtype = "float32" if variant in ("digits", "mnist") else "bfloat16"

        config.process = process = ConfigDict({"name": "ddpm"})
        process.schedule = "cosine" if variant == "imagenet64" else "linear"  # of beta: linear, scaled_linear or cosine
        process.steps = 1000  # T
        process.beta_start = None  # first beta; None = the schedule's published one, times 1000 / T
        process.beta_end = None  # last beta; None = the schedule's published one, times 1000 / T
        process.prediction = "eps"  # what the network predicts: eps, x0 or v
        process.zero_terminal_snr = False  # end at noise alone; for x0 and v
        process.variance = "learned_range"  # of ancestral steps: fixed_small, fixed_large or learned_range
        process.respacing = None  # train on these steps alone, such as "250"

        config.objective = objective = ConfigDict({"name": "ddpm_hybrid"})
        objective.time_sampling = "uniform"  # or loss_second_moment
        objective.weighting = None  # or min_snr
        objective.min_snr_gamma = 5.0  # largest signal-to-noise ratio that counts, for min_snr
        objective.bound_weight = 0.001  # of T times the variational bound, which trains the variance
        objective.likelihood = "exact"  # of 8-bit images in the bound: exact, or adm for the published approximation
        objective.condition_dropout = 0.1  # share of examples trained without label

        config.optimizer.update(name="adamw", learning_rate=LEARNING_RATES[variant], clip_norm=1.0)
        if variant == "digits":
            config.schedule.update(name="cosine", warmup_steps=100)
            config.ema.decay = 0.998
        config.sample.update(solver={"name": "dpmpp_2m"}, grid={"name": "karras"}, steps=20)
    return config
