"""How the references space noise levels between the highest and the lowest, by the name of the setting."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy import stats


def karras(high: float, low: float, steps: int) -> np.ndarray:
    """(N,) falling levels even in their 7th root (EDM, Eq. 5)."""
    return np.linspace(high ** (1 / 7), low ** (1 / 7), steps) ** 7


def exponential(high: float, low: float, steps: int) -> np.ndarray:
    """(N,) falling levels even in their logarithm."""
    return np.exp(np.linspace(math.log(high), math.log(low), steps))


def beta(high: float, low: float, steps: int) -> np.ndarray:
    """(N,) falling levels at the quantiles of a beta distribution, dense at both ends."""
    return low + (high - low) * stats.beta.ppf(np.linspace(1, 0, steps), 0.6, 0.6)


SIGMA_SPACINGS: dict[str, Callable[[float, float, int], np.ndarray]] = {
    "use_karras_sigmas": karras,
    "use_lu_lambdas": exponential,
    "use_exponential_sigmas": exponential,
    "use_beta_sigmas": beta,
}
