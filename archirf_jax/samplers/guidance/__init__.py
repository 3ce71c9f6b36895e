"""Guidance: one kind a file, found by the file's name; each file ends in `build`, the frozen dataclass of a denoiser.

`build` gets the objects that it has parameters for: `inner` (the Denoiser to guide), `null` (the condition that stands
for none) and `weak` (a weaker Denoiser); its other parameters are fields of a configuration, `scale` among them.
"""

from __future__ import annotations

from archirf_jax import lazy

_HOMES = {
    "AdaptiveProjected": ".adaptive_projected",
    "Autoguidance": ".autoguidance",
    "ClassifierFree": ".classifier_free",
}
__all__ = list(_HOMES)
__getattr__ = lazy.getter(__name__, _HOMES)
