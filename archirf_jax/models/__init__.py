"""Networks: pure Linen modules, one file each, found by the name of the file; each file ends in `build`.

Every network is called (x, t, condition) with network times t (B,) and a dict of conditions, and returns one array.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "ADMClassifier": "adm_classifier",
    "ADMUNet": "adm_unet",
    "DiT": "dit",
    "EDM2UNet": "edm2_unet",
    "MMDiT": "mmdit",
    "Uncertain": "uncertainty",
    "bind": "binding",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
