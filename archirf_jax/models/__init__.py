"""Networks: pure Linen modules, one file each, found by the name of the file; each file ends in `build`.

Every network is called (x, t, condition) with network times t (B,) and a dict of conditions, and returns one array.
"""

from __future__ import annotations

from archirf_jax import lazy

_HOMES = {
    "ADMClassifier": ".adm_classifier",
    "ADMUNet": ".adm_unet",
    "DiT": ".dit",
    "EDM2UNet": ".edm2_unet",
    "MMDiT": ".mmdit",
    "Uncertain": ".uncertainty",
    "bind": ".binding",
    "init": ".binding",
}
__all__ = list(_HOMES)
__getattr__ = lazy.getter(__name__, _HOMES)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
