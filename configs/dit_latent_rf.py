"""DiT with rectified flow in the latents of an autoencoder (Rombach et al. 2022; SD3's times), with class labels.

    python -m archirf_jax.main --config=configs/autoencoder.py --workdir=runs/ae_digits
    python -m archirf_jax.prepare_data --name=digits --autoencoder=runs/ae_digits --out=data/latents_digits
    python -m archirf_jax.main --config=configs/dit_latent_rf.py --workdir=runs/latent_rf

| variant     | images                   | latents | network                  |
|-------------|--------------------------|---------|--------------------------|
| digits      | 1,797 grey 8x8           | 4x4x4   | tiny/1                   |
| mnist       | 60,000 grey 28x28        | 7x7x4   | tiny/1                   |
| cifar10     | 50,000 colour 32x32      | 8x8x4   | S/1                      |
| openmoji    | 3,402 colour 64x64       | 8x8x16  | 6 blocks of width 192, /2 |
| imagenet64  | 1,281,167 colour 64x64   | 8x8x16  | B/1                      |
| imagenet256 | 1,281,167 colour 256x256 | 32x32x4 | XL/2                     |

The cache is data/latents_VARIANT, the autoencoder's run runs/ae_VARIANT; for imagenet256 import Stable Diffusion's by
import_weights --source=vae --workdir=runs/ae_imagenet256, and name your images (--name=folder:PATH) in prepare_data.

For openmoji add --flip to prepare_data.

Cost: digits 2 minutes on 2 CPU cores, with 2 more for the autoencoder; openmoji 12 minutes (4,000 steps), with 27
more, each up to 1.7 times as long in a slow hour; the others are not measured.
Expect: openmoji, smileys, people and flags that can be recognised (experiments/latents_or_pixels).
"""

from ml_collections import ConfigDict

from archirf_jax.models.dit import SIZES
from configs import default

NETWORKS = {
    "digits": SIZES["tiny"] | {"patch_size": 1},
    "mnist": SIZES["tiny"] | {"patch_size": 1},
    "cifar10": SIZES["S"] | {"patch_size": 1},
    "openmoji": {"hidden_size": 192, "depth": 6, "num_heads": 3, "patch_size": 2},
    "imagenet64": SIZES["B"] | {"patch_size": 1},
    "imagenet256": SIZES["XL"] | {"patch_size": 2},
}
LEARNING_RATES = {"digits": 2e-3, "mnist": 1e-3}


def get_config(variant: str = "digits") -> ConfigDict:
    """The configuration of one of NETWORKS."""
    default.choose(variant, NETWORKS)
    config = default.get_config("imagenet64" if variant == "imagenet256" else variant)
    with config.unlocked():
        default.in_latents(config, variant)
        config.data.image_size = 256 if variant == "imagenet256" else config.data.image_size
        config.model = model = ConfigDict({"name": "dit"} | NETWORKS[variant])
        model.conditioning = "adaln_zero"  # by time and label: adaln_zero, adaln, cross_attention or in_context
        model.registers = 0 if variant == "openmoji" else 4  # learned tokens in addition to the latents'
        model.qk_norm = "rms"  # norm of queries and keys: None, rms or layer
        model.positions = "sincos"  # sincos, learned or rotary
        model.position_size = None  # side of a learned table of positions, in patches
        model.mlp = "gelu"  # gelu or swiglu
        model.mlp_ratio = 4.0  # width of its hidden layer over hidden_size
        model.learn_sigma = False  # twice the channels, for a process that learns the variance
        model.remat = False  # compute activations again instead of keeping them
        model.scan = variant.startswith("imagenet")  # compile one block for all
        model.dtype = "bfloat16" if variant.startswith("imagenet") else "float32"

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
        if variant == "openmoji":
            config.update(steps=4000, batch_size=128)
            config.data.flip = True
            config.optimizer.update(name="muon", learning_rate=2e-3)
            config.checkpoint.every_steps = config.sample.every_steps = 500
        if variant in ("digits", "openmoji"):
            config.schedule.update(name="cosine", warmup_steps=100)
            config.ema.decay = 0.998
        config.sample.update(solver={"name": "dpmpp_2m"}, grid={"name": "uniform"}, steps=20)
    return config
