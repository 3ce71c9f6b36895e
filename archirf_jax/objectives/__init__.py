"""Losses, one a file, found by the file's name: how times and noise are drawn, and what is asked of the network."""

from __future__ import annotations

from archirf_jax import lazy

_HOMES = {
    "DdpmHybrid": ".ddpm_hybrid",
    "Regression": ".regression",
    "Uncertainty": ".uncertainty",
}
__all__ = list(_HOMES)
__getattr__ = lazy.getter(__name__, _HOMES)
