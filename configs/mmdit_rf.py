"""MMDiT with rectified flow on labelled images: the data and training of configs/dit_rf.py, another network.

    python -m archirf_jax.main --config=configs/mmdit_rf.py --workdir=runs/mmdit_rf            digits, the default
    python -m archirf_jax.main --config=configs/mmdit_rf.py:cifar10 --workdir=runs/mmdit_rf_cifar10

Two learned tokens a class are the context, two thirds of the blocks have two streams, the others one. For tokens from
pretrained features make a table by python -m archirf_jax.prepare_data --class_embeddings=..., then add
--config.model.context=class_table --config.model.class_embeddings=FILE --config.model.class_tokens=0
"""

from typing import Any

from ml_collections import ConfigDict

from archirf_jax.models.mmdit import PRESETS
from configs import dit_rf

MODELS: dict[str, dict[str, Any]] = {
    "digits": PRESETS["tiny/2"],
    "mnist": PRESETS["S/2"],
    "cifar10": PRESETS["S/2"],
    "openmoji": PRESETS["S/2"] | {"patch_size": 4},
    "imagenet64": PRESETS["S/2"]
    | {"hidden_size": 768, "depth": 8, "depth_single": 4, "num_heads": 12, "patch_size": 4},
}


def get_config(variant: str = "digits") -> ConfigDict:
    """The configuration of one of the variants of configs/dit_rf.py."""
    config = dit_rf.get_config(variant)
    dtype = config.model.dtype
    with config.unlocked():
        config.model = model = ConfigDict(MODELS[variant])
        model.name = "mmdit"
        model.context = "class_tokens"  # what the context holds: class_tokens (learned) or class_table (from a file)
        model.class_tokens = 2  # tokens a class; for class_table 0 = as many as the table has
        model.class_embeddings = ""  # .npz file with the table
        model.class_width = 0  # width of the table's features; 0 = as wide as the table
        model.registers = 4  # learned tokens beside the context's
        model.qk_norm = "rms"  # norm of queries and keys: "" for none, rms or layer
        model.mlp = "gelu"  # gelu or swiglu
        model.mlp_ratio = 4.0
        model.position_size = 0  # side of a fixed table of positions, whose middle is used; 0 = none
        model.remat = False  # compute activations again instead of keeping them
        model.scan = False  # compile one block for all that are alike
        model.dtype = dtype
    return config
