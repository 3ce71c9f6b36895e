"""MMDiT with rectified flow and SD3's logit-normal times, on labelled images, in pixels.

    python -m archirf_jax.main --config=configs/mmdit_rf.py --workdir=runs/mmdit_rf            # digits, the default
    python -m archirf_jax.main --config=configs/mmdit_rf.py:cifar10 --workdir=runs/mmdit_rf_cifar10

Variants: digits, mnist, cifar10, openmoji, imagenet64. Two learned tokens a class are the context; two thirds of the
blocks have two streams, the others one. For tokens from pretrained features make a table by
python -m archirf_jax.prepare_data --class_embeddings=..., then add --config.model.context=class_table
--config.model.class_embeddings=FILE --config.model.class_tokens=None

Cost: not measured.
Expect: not measured.
"""

from typing import Any

from ml_collections import ConfigDict

from archirf_jax.models.mmdit import PRESETS
from configs import default

NETWORKS: dict[str, dict[str, Any]] = {
    "digits": PRESETS["tiny/2"],
    "mnist": PRESETS["S/2"],
    "cifar10": PRESETS["S/2"],
    "openmoji": PRESETS["S/2"] | {"patch_size": 4},
    "imagenet64": PRESETS["S/2"]
    | {"hidden_size": 768, "depth": 8, "depth_single": 4, "num_heads": 12, "patch_size": 4},
}
LEARNING_RATES = {"digits": 2e-3, "mnist": 3e-4, "cifar10": 2e-4, "openmoji": 2e-4, "imagenet64": 1e-4}


def get_config(variant: str = "digits") -> ConfigDict:
    """The configuration of one of NETWORKS."""
    config = default.get_config(default.choose(variant, NETWORKS))
    with config.unlocked():
        config.model = model = ConfigDict({"name": "mmdit"} | NETWORKS[variant])
        model.context = "class_tokens"  # what the context holds: class_tokens (learned) or class_table (from a file)
        model.class_tokens = 2  # tokens a class; for class_table None = as many as the table has
        model.class_embeddings = None  # .npz file with the table
        model.class_width = None  # width of the table's features; None = as wide as the table
        model.registers = 4  # learned tokens in addition to the context's
        model.qk_norm = "rms"  # norm of queries and keys: None, rms or layer
        model.mlp = "gelu"  # gelu or swiglu
        model.mlp_ratio = 4.0  # width of its hidden layer over hidden_size
        model.position_size = None  # side of a fixed table of positions, whose middle is used
        model.remat = False  # compute activations again instead of keeping them
        model.scan = False  # compile one block for all that are alike
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
