"""The four designs of DiT with rectified flow on digits (Peebles & Xie 2022, Sec. 3.2); all else is equal.

    python -m archirf_jax.main --config=configs/dit_designs_rf.py:in_context --workdir=runs/dit_in_context

Variants: adaln_zero (the default), adaln, cross_attention, in_context.
On other data: --config=configs/dit_rf.py:cifar10 --config.model.conditioning=adaln

Cost: about 25 minutes for all four on 2 CPU cores (experiments/dit_designs).
Expect: the comparison in experiments/dit_designs/README.md.
"""

from ml_collections import ConfigDict

from archirf_jax.models.dit import MODULATIONS, PRESETS
from configs import default


def get_config(variant: str = "adaln_zero") -> ConfigDict:
    """The configuration of one design."""
    conditioning = default.choose(variant, MODULATIONS)
    config = default.get_config("digits")
    with config.unlocked():
        config.model = model = ConfigDict({"name": "dit"} | PRESETS["tiny/2"])
        model.conditioning = conditioning  # how blocks are conditioned on time and label
        model.registers = 4  # learned tokens in addition to the image's
        model.qk_norm = "rms"  # norm of queries and keys: None, rms or layer
        model.positions = "sincos"  # sincos, learned or rotary
        model.position_size = None  # side of a learned table of positions, in patches
        model.mlp = "gelu"  # gelu or swiglu
        model.mlp_ratio = 4.0  # width of its hidden layer over hidden_size
        model.learn_sigma = False  # twice the channels, for a process that learns the variance
        model.remat = False  # compute activations again instead of keeping them
        model.scan = False  # compile one block for all
        model.dtype = "float32"  # of the computation: float32, bfloat16 or float16, which scales its losses

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
        config.optimizer.update(name="adamw", learning_rate=2e-3, clip_norm=1.0)
        config.schedule.update(name="cosine", warmup_steps=100)
        config.ema.decay = 0.998
        config.sample.update(solver={"name": "dpmpp_2m"}, grid={"name": "uniform"}, steps=20)
    return config
