"""The steps a sampler takes: (N, 2) pairs of times, from and to, float64 on the host; one kind of grid a file.

In a consistent grid each step starts where the previous one ended, and the times fall from 1 (noise) to 0 (data). Each
file ends in `build`, a frozen dataclass that subclasses `Grid`. Step k of DDPM's integer steps is at t = (k + 1) / T.
"""

from __future__ import annotations

from archirf_jax import lazy
from archirf_jax.samplers.grids.base import Grid, ending_at, pairs, starting_at

_HOMES = {
    "Archirf": ".archirf",
    "DynamicShift": ".dynamic_shift",
    "Karras": ".karras",
    "Leading": ".leading",
    "Linspace": ".linspace",
    "Respaced": ".respaced",
    "Shifted": ".shifted",
    "Trailing": ".trailing",
    "Uniform": ".uniform",
}
__all__ = ["Grid", "ending_at", "pairs", "starting_at", *_HOMES]
__getattr__ = lazy.getter(__name__, _HOMES)
