"""The group `data` of a run that was imported: it describes images, and no set of them is at hand."""

from __future__ import annotations

from typing import Any


def data_group(size: int, channels: int, num_classes: int | None) -> dict[str, Any]:
    """The group for images of this side; without classes no labels are read."""
    shape = dict(image_size=size, channels=channels, num_classes=num_classes, flip=False, value_range=None)
    place = dict(name="imported", dir="data", split="train", label_key=None if num_classes is None else "label")
    return place | shape | dict(device_cache_mib=2048, skip_unreadable=False, fields={})
