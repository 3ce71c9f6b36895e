"""The arms of the experiment as data: what each changes of the base, and what all of them share.

A weight w of the divergence asks for a mean absolute error of about w times the latents' numbers over the image's:
there a further nat no longer lowers the error by what it costs. The weights therefore reach from the published one,
which hardly holds the latents, to one that blurs images.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from configs import autoencoder, autoencoder_kl, autoencoder_vq, dit_latent_rf

FAMILIES = {"bounded": autoencoder, "kl": autoencoder_kl, "vq": autoencoder_vq}
BASE = "base"
EMA = 0.99  # trainings are short


@dataclasses.dataclass(frozen=True)
class Arm:
    """One autoencoder.

    Attributes:
        question: what the arm is about; arms of one question are drawn in one colour.
        family: one of FAMILIES.
        changes: of the base's configuration or, in other families, of the family's, by dotted name.
    """

    question: str
    family: str = "bounded"
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def _spread(target: float, measured: str) -> Arm:
    return Arm("spread", changes={"objective.std_target": target, "objective.std_measured": measured})


# The base has latents of 4 channels clipped to [-1, 1], a spread held near 0.718 before the clip, and no perturbation.
ARMS: dict[str, Arm] = {
    BASE: Arm("base"),
    "tanh": Arm("bound", changes={"model.bound": "tanh"}),
    "unbounded": Arm("bound", changes={"model.bound": "none"}),
    "channels_8": Arm("channels", changes={"model.latent_channels": 8}),
    "channels_16": Arm("channels", changes={"model.latent_channels": 16}),
    "perturbed_0.1": Arm("perturbation", changes={"objective.perturbation": 0.1}),
    "perturbed_0.3": Arm("perturbation", changes={"objective.perturbation": 0.3}),
    "spread_0.718_after": _spread(0.718, "after"),
    "spread_1_before": _spread(1.0, "before"),
    "spread_1_after": _spread(1.0, "after"),
    **{f"kl_{text}": Arm("kl", "kl", {"objective.kl_weight": float(text)}) for text in ("0", "1e-6", "1e-3", "1e-1")},
    "vq": Arm("vq", "vq"),
}
QUESTIONS = tuple(dict.fromkeys(arm.question for arm in ARMS.values()))


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """Images, and the sizes that every arm has on them.

    Attributes:
        train, held_out: splits.
        steps, flow_steps: of the autoencoder and of the flow.
        batch_size, flow_batch_size: images a step.
        learning_rate, flow_learning_rate: the highest.
        data: fields of `config.data`.
        body: fields of every autoencoder's network.
        codes: vectors of the codebook.
        flow: fields of the flow's network.
    """

    train: str
    held_out: str
    steps: int
    flow_steps: int
    batch_size: int
    flow_batch_size: int
    learning_rate: float
    flow_learning_rate: float
    data: Mapping[str, Any]
    body: Mapping[str, Any]
    codes: int
    flow: Mapping[str, Any]


SETS = {
    "openmoji": ImageSet(  # 32x32x3 -> 8x8x4
        train="train",
        held_out="test",
        steps=600,
        flow_steps=500,
        batch_size=16,
        flow_batch_size=64,
        learning_rate=2e-3,
        flow_learning_rate=2e-3,
        data={"image_size": 32, "flip": False},
        body={
            **{"patch_size": 2, "block_out_channels": (32, 64), "norm_num_groups": 8},
            "mid_block_add_attention": False,
        },
        codes=256,
        flow={"hidden_size": 96, "depth": 4, "num_heads": 4, "patch_size": 2},
    ),
    "digits": ImageSet(  # 8x8x1 -> 4x4x4
        train="train[:80%]",
        held_out="train[80%:]",
        steps=600,
        flow_steps=600,
        batch_size=32,
        flow_batch_size=64,
        learning_rate=2e-3,
        flow_learning_rate=2e-3,
        data={},
        body={"block_out_channels": (8, 16), "norm_num_groups": 4, "mid_block_add_attention": False},
        codes=64,
        flow={"hidden_size": 96, "depth": 4, "num_heads": 4, "patch_size": 2},
    ),
}


def autoencoder_config(name: str, arm: str, seed: int, data_dir: str) -> Any:
    """The configuration of an arm's autoencoder on one of SETS."""
    images, what = SETS[name], ARMS[arm]
    config = FAMILIES[what.family].get_config(name)
    with config.unlocked():
        config.update(seed=seed, steps=images.steps, batch_size=images.batch_size)
        config.data.update(dir=data_dir, split=images.train, **images.data)
        config.model.update(layers_per_block=1, latent_channels=4, attention_levels=(), **images.body)
        config.objective.update(l1_weight=1.0, l2_weight=0.0)
        if what.family == "vq":
            config.model.num_vq_embeddings = images.codes
        if what.family == "bounded":
            config.model.bound = "clip"
        _train(config, images.learning_rate)
        config.update_from_flattened_dict(dict(what.changes))
    return config


def flow_config(name: str, seed: int, data_dir: str, autoencoder_run: pathlib.Path, cache: pathlib.Path) -> Any:
    """The configuration of the flow in the latents of a cache, the same for every arm; its samples are unguided."""
    images = SETS[name]
    config = dit_latent_rf.get_config(name)
    with config.unlocked():
        config.update(seed=seed, steps=images.flow_steps, batch_size=images.flow_batch_size)
        config.data.update(dir=data_dir, name=f"latents:{cache}", **images.data)
        config.frozen.autoencoder = str(autoencoder_run)
        config.model.update(images.flow)
        config.sample.guidance.scale = 1.0
        _train(config, images.flow_learning_rate)
    return config


def _train(config: Any, learning_rate: float) -> None:
    """What all trainings share; one preview, one checkpoint, and two rows of a few images in the preview."""
    steps = config.steps
    config.optimizer.update(name="muon", learning_rate=learning_rate, clip_norm=1.0)
    config.schedule.update(name="cosine", warmup_steps=max(1, steps // 20))
    config.ema.decay = EMA
    config.log.update(every_steps=max(1, steps // 20), tensorboard=False)
    config.checkpoint.update(every_steps=steps, keep=1)
    config.sample.update(every_steps=steps, classes=2, per_class=4)
