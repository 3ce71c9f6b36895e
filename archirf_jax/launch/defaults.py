"""The default of every field of a configuration; configs/default.py says what each means, and has the same values."""

from __future__ import annotations

from typing import Any

import ml_collections

DEFAULTS: dict[str, Any] = {
    "task": "diffusion",
    "seed": 0,
    "steps": 10_000,
    "batch_size": 128,
    "accumulation": 1,
    "steps_per_dispatch": 50,
    "init_from": None,
    "data": {
        "name": "digits",
        "dir": "data",
        "split": "train",
        "label_key": "label",
        "image_size": 8,
        "channels": 1,
        "num_classes": None,
        "value_range": None,
        "crop": None,
        "buckets": None,
        "flip": False,
        "device_cache_mib": 2048,
        "skip_unreadable": False,
        "fields": {},
    },
    "first_stage": {"name": "image"},
    "conditioners": {"label": {"name": "label"}},
    "frozen": {},
    "model": {"name": "dit"},
    "process": {"name": "rectified_flow"},
    "objective": {"name": "regression"},
    "optimizer": {
        "name": "adamw",
        "learning_rate": 1e-4,
        "b1": 0.9,
        "b2": 0.999,
        "eps": 1e-8,
        "moment_dtype": "float32",
        "muon_momentum": 0.95,
        "weight_decay": 0.0,
        "weight_decay_mask": "(.*/)?kernel",
        "clip_norm": 1.0,
    },
    "schedule": {"name": "constant", "warmup_steps": 1000, "reference_steps": 70_000},
    "ema": {"decay": 0.9999, "more_decays": (), "sigma_rel": (), "snapshot_steps": 1000},
    "guard": {"patience": 10, "jump": None},
    "networks": {},
    "mesh": {"data": None, "fsdp": 1},
    "log": {"every_steps": 100, "tensorboard": True},
    "checkpoint": {
        "every_steps": 1000,
        "keep": 3,
        "keep_best": 0,
        "best_metric": "loss",
        "keep_every": None,
        "required": True,
    },
    "sample": {
        "every_steps": 1000,
        "classes": 10,
        "per_class": 8,
        "steps": 20,
        "threshold": None,
        "hoist": True,
        "solver": {"name": "dpmpp_2m"},
        "grid": {"name": "uniform"},
        "guidance": {"name": "classifier_free", "scale": 1.5, "interval": None},
    },
}


def defaults() -> ml_collections.ConfigDict:
    """A configuration with every field at its default."""
    return ml_collections.ConfigDict(DEFAULTS)
