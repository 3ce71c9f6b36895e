"""DiT with rectified flow and SD3's logit-normal times, on labelled images, in pixels.

    python -m archirf_jax.main --config=configs/dit_rf.py --workdir=runs/dit_rf            # digits, the default
    python -m archirf_jax.main --config=configs/dit_rf.py:cifar10 --workdir=runs/cifar10

| variant    | images                 | network |
|------------|------------------------|---------|
| digits     | 1,797 grey 8x8         | tiny/2  |
| mnist      | 60,000 grey 28x28      | S/4     |
| cifar10    | 50,000 colour 32x32    | S/2     |
| openmoji   | 3,402 colour 64x64     | S/4     |
| imagenet64 | 1,281,167 colour 64x64 | B/4     |

Cost: digits 2 minutes on 2 CPU cores; the others, meant for a GPU, are not measured.
Expect: digits: an SVC gives 0.989 of 1,000 unguided samples the right label (0.972 of real digits), and the Frechet
distance of the pixels of 1,797 is 0.138 (benchmarks/digits_quality.py, README); the others are not measured.
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

        config.optimizer.update(name="adamw", learning_rate=LEARNING_RATES[variant], clip_norm=1.0)
        if variant == "digits":
            config.schedule.update(name="cosine", warmup_steps=100)
            config.ema.decay = 0.998
        config.sample.update(solver={"name": "dpmpp_2m"}, grid={"name": "uniform"}, steps=20)
    return config
