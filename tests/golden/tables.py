"""DDPM with tables as the references hold them."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from archirf_jax.processes.base import backend
from archirf_jax.processes.ddpm import DDPM


class NearlyZero(DDPM):
    """The reference keeps abar = 2^-24 where it is 0, so that its highest noise level is finite: 4096."""

    def alpha(self, t: Any) -> Any:
        """sqrt(abar) at times t."""
        return backend(t).maximum(super().alpha(t), 2.0**-12)

    def sigma(self, t: Any) -> Any:
        """sqrt(1 - abar) at times t."""
        return backend(t).sqrt(1 - self.alpha(t) ** 2)


class SinglePrecision(DDPM):
    """The reference's table is float32, which moves the noise levels of the first steps by up to 3e-4."""

    @functools.cached_property
    def minus_log_abar(self) -> np.ndarray:
        """(T + 1,) as the reference rounds it."""
        abar = np.cumprod(np.float32(1) - self.betas.astype(np.float32), dtype=np.float32)
        return np.append(0.0, -np.log(abar.astype(np.float64)))
