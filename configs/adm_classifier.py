"""ADM's classifier of noisy images, which guides the samplers of configs/adm_ddpm.py and configs/dit_ddpm.py.

    python -m archirf_jax.main --config=configs/adm_classifier.py --workdir=runs/classifier    # digits, the default
    python -m archirf_jax.sample --workdir=runs/adm_ddpm --classifier=runs/classifier --classifier_scale=2

Variants: digits, mnist, cifar10, openmoji, imagenet64. Optimizer and weight decay are the published ones
(Dhariwal & Nichol 2021, App. B).

Cost: not measured.
Expect: not measured.
"""

from ml_collections import ConfigDict

from archirf_jax.models.adm_classifier import PRESETS
from configs import default

NETWORKS = {
    "digits": PRESETS["tiny"],
    "mnist": PRESETS["tiny"] | {"model_channels": 64},
    "cifar10": PRESETS["tiny"] | {"model_channels": 64, "channel_mult": (1, 2, 2)},
    "openmoji": PRESETS["imagenet64"] | {"model_channels": 64, "num_res_blocks": 2},
    "imagenet64": PRESETS["imagenet64"],
}


def get_config(variant: str = "digits") -> ConfigDict:
    """The configuration of one of NETWORKS."""
    config = default.get_config(default.choose(variant, NETWORKS))
    with config.unlocked():
        config.task = "classifier"
        config.model = model = ConfigDict({"name": "adm_classifier", "dropout": 0.0} | NETWORKS[variant])
        model.image_size = config.data.get_ref("image_size")  # its attention pool takes one size alone
        model.remat = False  # compute activations again instead of keeping them
        # Of the computation: float32, bfloat16 or float16, which scales its losses.
        model.dtype = "float32" if variant in ("digits", "mnist") else "bfloat16"

        config.process = process = ConfigDict({"name": "ddpm"})  # of the images' noise
        process.schedule = "cosine" if variant == "imagenet64" else "linear"  # of beta: linear, scaled_linear or cosine
        process.steps = 1000  # T
        process.beta_start = None  # first beta; None = the schedule's published one, times 1000 / T
        process.beta_end = None  # last beta; None = the schedule's published one, times 1000 / T
        process.prediction = "eps"  # as the networks that it guides
        process.zero_terminal_snr = False  # end at noise alone; for x0 and v
        process.variance = "learned_range"  # as the networks that it guides
        process.respacing = None  # train on these steps alone, such as "250"

        # The times of its noise; labels are what it learns, so none is dropped.
        config.objective = ConfigDict({"name": "regression", "time_distribution": "steps", "condition_dropout": 0.0})

        learning_rate = 1e-3 if variant == "digits" else 3e-4
        config.optimizer.update(name="adamw", learning_rate=learning_rate, clip_norm=1.0, weight_decay=0.05)
        if variant == "digits":
            config.schedule.update(name="cosine", warmup_steps=100)
            config.ema.decay = 0.998
        config.sample.update(solver={"name": "dpmpp_2m"}, grid={"name": "karras"}, steps=20)
    return config
