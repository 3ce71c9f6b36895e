"""MMDiT with rectified flow in the latents of an autoencoder, with class labels: ArchiRF's second half.

    python -m archirf_jax.main --config=configs/autoencoder.py --workdir=runs/ae_digits
    python -m archirf_jax.prepare_data --name=digits --autoencoder=runs/ae_digits --out=data/latents_digits
    python -m archirf_jax.main --config=configs/mmdit_latent_rf.py --workdir=runs/mmdit_latent

| variant    | images                 | latents | network                  |
|------------|------------------------|---------|--------------------------|
| digits     | 1,797 grey 8x8         | 4x4x4   | tiny/1                   |
| mnist      | 60,000 grey 28x28      | 7x7x4   | tiny/1                   |
| cifar10    | 50,000 colour 32x32    | 8x8x4   | S/1                      |
| openmoji   | 3,402 colour 64x64     | 8x8x16  | S/1                      |
| imagenet64 | 1,281,167 colour 64x64 | 8x8x16  | 8 + 4 blocks of width 768 |

The cache is data/latents_VARIANT, the autoencoder's run runs/ae_VARIANT. Two learned tokens a class are the context.

Cost: not measured.
"""

from typing import Any

from ml_collections import ConfigDict

from archirf_jax.models.mmdit import PRESETS
from configs import default

NETWORKS: dict[str, dict[str, Any]] = {
    "digits": PRESETS["tiny/2"] | {"patch_size": 1},
    "mnist": PRESETS["tiny/2"] | {"patch_size": 1},
    "cifar10": PRESETS["S/2"] | {"patch_size": 1},
    "openmoji": PRESETS["S/2"] | {"patch_size": 1},
    "imagenet64": PRESETS["S/2"]
    | {"hidden_size": 768, "depth": 8, "depth_single": 4, "num_heads": 12, "patch_size": 1},
}
LEARNING_RATES = {"digits": 2e-3, "mnist": 1e-3, "openmoji": 5e-4}


def get_config(variant: str = "digits") -> ConfigDict:
    """The configuration of one of NETWORKS."""
    config = default.get_config(default.choose(variant, NETWORKS))
    with config.unlocked():
        default.in_latents(config, variant)
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
        model.dtype = "bfloat16" if variant == "imagenet64" else "float32"

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
        config.optimizer.update(name="adamw", learning_rate=LEARNING_RATES.get(variant, 1e-4), clip_norm=1.0)
        if variant in ("digits", "openmoji"):
            config.schedule.update(name="cosine", warmup_steps=100)
            config.ema.decay = 0.998
        config.sample.update(solver={"name": "dpmpp_2m"}, grid={"name": "uniform"}, steps=20)
    return config
