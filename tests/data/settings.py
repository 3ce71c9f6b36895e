"""Configurations of data alone, for the tests of this room."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

RESIDENT, STREAMED = 2048, 0  # MiB that may lie on the device


def data(**given: Any) -> ConfigDict:
    """`config.data` of grey 8x8 images."""
    fields = dict(name="digits", dir="", split="train", label_key="label", image_size=8, channels=1, num_classes=None)
    others = dict(value_range=None, flip=False, device_cache_mib=RESIDENT, skip_unreadable=False, fields={})
    return ConfigDict(fields | others | given)


def config(batch_size: int, steps: int, seed: int = 0, **given: Any) -> ConfigDict:
    """What a feed needs of a run's configuration, on one device."""
    run = dict(batch_size=batch_size, steps=steps, seed=seed, accumulation=1, steps_per_dispatch=50)
    return ConfigDict(run | {"mesh": {"data": 1, "fsdp": 1}, "data": data(**given)})
