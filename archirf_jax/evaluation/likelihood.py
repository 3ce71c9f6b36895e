"""Bits per dimension of images under a model: what it costs to code images that it did not make."""

from __future__ import annotations

import jax
import numpy as np

from archirf_jax.contracts import Condition, Denoiser
from archirf_jax.processes.base import Process
from archirf_jax.samplers.grids.base import pairs
from archirf_jax.samplers.likelihood import Likelihood, bits_per_dim

FIRST = 50.0  # sigma / alpha at which the steps begin that are even in its logarithm
THIRDS = 3  # the noise of dequantisation, sigma / alpha, is half a level over this


def times(process: Process, levels: int, steps: int) -> np.ndarray:
    """(steps + 1,) falling times from 1 to a third of half a grey level, even in the logarithm of the noise."""
    return np.append(1.0, process.time_of_ratio(np.geomspace(FIRST, last_ratio(levels), steps)))


def last_ratio(levels: int) -> float:
    """A third of half a grey level, as sigma / alpha of images in [-1, 1]."""
    return 1 / (levels - 1) / THIRDS


def of_ode(
    keys: jax.Array,
    denoise: Denoiser,
    x0: jax.Array,
    condition: Condition,
    *,
    levels: int,
    steps: int = 200,
    probes: int = 8,
) -> Likelihood:
    """`samplers.likelihood.bits_per_dim` along such times."""
    grid = pairs(times(denoise.process, levels, steps))
    return bits_per_dim(keys, denoise, x0, condition, grid=grid, probes=probes, levels=levels)
