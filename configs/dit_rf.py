"""DiT with rectified flow (SD3's logit-normal times) on labelled images, in pixels.

    python -m archirf_jax.main --config=configs/dit_rf.py --workdir=runs/dit_rf            digits, the default
    python -m archirf_jax.main --config=configs/dit_rf.py:cifar10 --workdir=runs/cifar10

| variant    | images                 | network | what it takes                                                   |
|------------|------------------------|---------|-----------------------------------------------------------------|
| digits     | 1,797 grey 8x8         | tiny/2  | 2 minutes on 2 CPU cores; judged by benchmarks/digits_quality.py |
| mnist      | 60,000 grey 28x28      | S/4     | a GPU                                                           |
| cifar10    | 50,000 colour 32x32    | S/2     | a GPU                                                           |
| openmoji   | 3,402 colour 64x64     | S/4     | a GPU                                                           |
| imagenet64 | 1,281,167 colour 64x64 | B/4     | a large GPU; streamed from disk                                 |
"""

from ml_collections import ConfigDict

from archirf_jax.models.dit import PRESETS
from configs import default

# Per variant: network preset, then what differs from configs/default.py.
VARIANTS = {
    "digits": (
        "tiny/2",
        {
            "steps": 2000,
            "optimizer.learning_rate": 2e-3,
            "schedule.warmup_steps": 100,
            "schedule.name": "cosine",
            "ema.decay": 0.998,
            "checkpoint.every_steps": 500,
            "sample.every_steps": 200,
        },
    ),
    "mnist": ("S/4", {"data.name": "mnist", "data.image_size": 28, "steps": 20_000, "optimizer.learning_rate": 3e-4}),
    "cifar10": (
        "S/2",
        {
            "data.name": "cifar10",
            "data.image_size": 32,
            "data.channels": 3,
            "data.flip": True,
            "steps": 200_000,
            "batch_size": 256,
            "optimizer.learning_rate": 2e-4,
            "model.dtype": "bfloat16",
            "checkpoint.every_steps": 5000,
            "sample.every_steps": 5000,
        },
    ),
    "openmoji": (
        "S/4",
        {
            "data.name": "openmoji",
            "data.image_size": 64,
            "data.channels": 3,
            "steps": 50_000,
            "optimizer.learning_rate": 2e-4,
            "model.dtype": "bfloat16",
            "checkpoint.every_steps": 2500,
            "sample.every_steps": 2000,
        },
    ),
    "imagenet64": (
        "B/4",
        {
            "data.name": "imagenet_resized/64x64",
            "data.image_size": 64,
            "data.channels": 3,
            "data.flip": True,
            "steps": 400_000,
            "batch_size": 256,
            "model.dtype": "bfloat16",
            "model.scan": True,
            "checkpoint.every_steps": 5000,
            "sample.every_steps": 10_000,
        },
    ),
}


def get_config(variant: str = "digits") -> ConfigDict:
    """The configuration of one of VARIANTS."""
    if variant not in VARIANTS:
        raise ValueError(f"configs/dit_rf.py has no variant {variant!r}; it has {', '.join(VARIANTS)}")
    preset, changes = VARIANTS[variant]
    config = default.get_config()
    with config.unlocked():
        config.model.update(PRESETS[preset])
        model = config.model
        model.conditioning = "adaln_zero"  # how blocks are told time and label: adaln_zero, adaln, cross_attention, ...
        model.registers = 4  # learned tokens beside the image's
        model.qk_norm = "rms"  # norm of queries and keys: "" for none, rms or layer
        model.positions = "sincos"  # sincos, learned or rotary
        model.position_size = 0  # side of a learned table of positions, in patches
        model.mlp = "gelu"  # gelu or swiglu
        model.mlp_ratio = 4.0  # width of its hidden layer over hidden_size
        model.learn_sigma = False  # answer twice the channels, for a process that learns the variance
        model.remat = False  # compute activations again instead of keeping them
        model.scan = False  # compile one block for all
        model.dtype = "float32"  # of the computation: float32, bfloat16 or float16, which scales its losses
    config.update_from_flattened_dict(changes)
    return config
