"""DiT with EDM on labelled images: preconditioning, noise and sampler of Karras et al. 2022, Table 1.

    python -m archirf_jax.main --config=configs/dit_edm.py --workdir=runs/dit_edm            # digits, the default
    python -m archirf_jax.main --config=configs/dit_edm.py:cifar10 --workdir=runs/dit_edm_cifar10

Variants: digits, mnist, cifar10, openmoji, imagenet64. The network is conditioned on 250 ln(sigma) / 4, about -400 to
275, because DiT's time embedding expects numbers of hundreds.

Cost: not measured.
Expect: not measured.
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
        model.learn_sigma = False  # twice the channels, for a process that learns the variance
        model.remat = False  # compute activations again instead of keeping them
        model.scan = variant == "imagenet64"  # compile one block for all
        # Of the computation: float32, bfloat16 or float16, which scales its losses.
        model.dtype = "float32" if variant in ("digits", "mnist") else "bfloat16"

        config.process = process = ConfigDict({"name": "edm"})
        process.sigma_data = 0.75 if variant == "digits" else 0.5  # standard deviation of the images
        process.sigma_min = 0.002  # smallest sigma of sampling
        process.sigma_max = 80.0  # sigma at t = 1
        process.time_scale = 250.0  # the network is conditioned on time_scale ln(sigma) / 4

        config.objective = objective = ConfigDict({"name": "regression"})
        objective.time_distribution = "log_normal"  # of sigma
        objective.P_mean = -1.2  # mean of ln(sigma)
        objective.P_std = 1.2  # standard deviation of ln(sigma)
        objective.condition_dropout = 0.1  # share of examples trained without label

        config.optimizer.update(name="adamw", learning_rate=LEARNING_RATES[variant], clip_norm=1.0)
        if variant == "digits":
            config.schedule.update(name="cosine", warmup_steps=100)
            config.ema.decay = 0.998
        config.sample.update(solver={"name": "edm"}, grid={"name": "karras"}, steps=18)
    return config
