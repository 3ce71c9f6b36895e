"""Configurations of tiny networks that read texts, on a folder of scenes: one variant a network."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from configs import adm_text_ddpm, scenes_rf

STEPS = 4
TINY: dict[str, Any] = dict(hidden_size=16, depth=1, num_heads=2, patch_size=4)
NETWORKS: dict[str, dict[str, Any]] = {
    "adm": dict(channel_mult=(1,), attention_downsamples=(1,)),  # and what its configuration says
    "mmdit": dict(name="mmdit", context="text", depth_single=1, **TINY),
    "dit": dict(name="dit", conditioning="cross_attention", num_classes=None, **TINY),
    "in_context": dict(name="dit", conditioning="in_context", num_classes=None, **TINY),
    "latent_unet": dict(
        name="latent_unet",
        block_out_channels=(8,),
        layers_per_block=1,
        transformer_depth=(1,),
        num_heads=2,
        norm_num_groups=4,
    ),
}


def get_config(variant: str) -> ConfigDict:
    """The configuration of scenes with one of NETWORKS."""
    config = (adm_text_ddpm if variant == "adm" else scenes_rf).get_config()
    with config.unlocked():
        network = ConfigDict(NETWORKS[variant] | dict(context_width=16, pooled_width=16))
        if variant == "adm":
            config.model.network.update(network)
        else:
            config.model.network = network
        config.model.text.update(hidden_size=16, depth=1, num_heads=2)
        config.update(steps=STEPS, batch_size=8)
        config.data.label_key = None
        config.optimizer.name = "adamw"  # Muon's rule is compiled for each shape
        config.schedule.warmup_steps = 0
        config.checkpoint.every_steps = config.log.every_steps = 1
        config.sample.update(steps=2, classes=3, per_class=2, every_steps=2)
        config.log.tensorboard = False
        config.mesh.data = 1
    return config
