"""Paths x_t = alpha(t) x0 + sigma(t) eps from data (t = 0) to noise (t = 1): SiT (Ma et al. 2024, Table 1, Appendix A).

linear    alpha = 1 - t             sigma = t
gvp       alpha = cos(pi t / 2)     sigma = sin(pi t / 2)
vp        alpha = exp(-b(t) / 2)    sigma = sqrt(1 - alpha^2), b the integral of a beta that rises from 0.1 to 20
          (Song et al. 2021, "Score-Based Generative Modeling through Stochastic Differential Equations", Eq. 33)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from archirf_jax.processes.base import Times, backend

BETAS = (0.1, 20.0)


class Interpolant(NamedTuple):
    """Functions of a path.

    Attributes:
        alpha: the share of the data at times t. sigma: that of the noise.
        time_of_ratio: the times at which sigma / alpha has these values.
    """

    alpha: Callable[[Times], Times]
    sigma: Callable[[Times], Times]
    time_of_ratio: Callable[[Times], Times]


def _linear_alpha(t: Times) -> Times:
    return 1 - t


def _linear_sigma(t: Times) -> Times:
    return t


def _linear_time_of_ratio(ratio: Times) -> Times:
    return ratio / (1 + ratio)


def _integrated_beta(t: Times) -> Times:
    low, high = BETAS
    return (low + (high - low) / 2 * t) * t


def _vp_alpha(t: Times) -> Times:
    xp = backend(t)
    return xp.exp(-_integrated_beta(t) / 2)


def _vp_sigma(t: Times) -> Times:
    xp = backend(t)
    return xp.sqrt(-xp.expm1(-_integrated_beta(t)))


def _vp_time_of_ratio(ratio: Times) -> Times:
    xp = backend(ratio)
    low, high = BETAS
    b = xp.log1p(ratio**2)
    return 2 * b / (low + xp.sqrt(low**2 + 2 * (high - low) * b))


def _gvp_alpha(t: Times) -> Times:
    xp = backend(t)  # a sine of the time left, as the cosine of pi / 2 rounds to something else than 0
    return xp.sin(np.pi / 2 * (1 - t))


def _gvp_sigma(t: Times) -> Times:
    xp = backend(t)
    return xp.sin(np.pi / 2 * t)


def _gvp_time_of_ratio(ratio: Times) -> Times:
    xp = backend(ratio)
    return xp.arctan(ratio) / (np.pi / 2)


PATHS = {
    "linear": Interpolant(_linear_alpha, _linear_sigma, _linear_time_of_ratio),
    "vp": Interpolant(_vp_alpha, _vp_sigma, _vp_time_of_ratio),
    "gvp": Interpolant(_gvp_alpha, _gvp_sigma, _gvp_time_of_ratio),
}
