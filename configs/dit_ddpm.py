"""DiT with DDPM on labelled images: it predicts the noise and learns the variance (Peebles & Xie 2022, Sec. 4).

    python -m archirf_jax.main --config=configs/dit_ddpm.py --workdir=runs/dit_ddpm            # digits, the default
    python -m archirf_jax.main --config=configs/dit_ddpm.py:cifar10 --workdir=runs/dit_ddpm_cifar10

Variants: digits, mnist, cifar10, openmoji, imagenet64.

Cost: not measured.
Expect: digits: 2.123 +- 0.014 bits per dimension, held out (README); the others are not measured.
"""

from ml_collections import ConfigDict

from archirf_jax.models.dit import PRESETS
from configs import default

NETWORKS = {"digits": "tiny/2", "mnist": "S/4", "cifar10": "S/2", "openmoji": "S/4", "imagenet64": "B/4"}
LEARNING_RATES = {"digits": 2e-3, "mnist": 3e-4, "cifar10": 2e-4, "openmoji": 2e-4, "imagenet64": 1e-4}


def get_config(variant: str = "digits") -> ConfigDict:
    """The configuration of one of NETWORKS."""
    config = default.get_config(default.choose(variant, NETWORKS))
    with config.unlocked():
        config.model = model = ConfigDict({"name": "dit"} | PRESETS[NETWORKS[variant]])
        model.conditioning = "adaln_zero"  # by time and label: adaln_zero, adaln, cross_attention or in_context
        model.registers = 4  # learned tokens in addition to the image's
        model.qk_norm = "rms"  # norm of queries and keys: None, rms or layer
        model.positions = "sincos"  # sincos, learned or rotary
        model.position_size = None  # side of a learned table of positions, in patches
        model.mlp = "gelu"  # gelu or swiglu
        model.mlp_ratio = 4.0  # width of its hidden layer over hidden_size
        model.learn_sigma = True  # twice the channels: the process learns the variance
        model.remat = False  # compute activations again instead of keeping them
        model.scan = variant == "imagenet64"  # compile one block for all
        # Of the computation: float32, bfloat16 or float16, which scales its losses.
        model.dtype = "float32" if variant in ("digits", "mnist") else "bfloat16"

        config.process = process = ConfigDict({"name": "ddpm"})
        process.schedule = "linear"  # of beta: linear, scaled_linear or cosine
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
