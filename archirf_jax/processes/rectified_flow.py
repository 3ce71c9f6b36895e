"""Rectified flow (Liu et al. 2022, "Flow Straight and Fast"; SD3: Esser et al. 2024, "Scaling Rectified Flow
Transformers") and its relatives with curved paths (SiT: Ma et al. 2024, Table 1 and Appendix A).

    x_t = (1 - t) x0 + t eps                     a straight line from data (t = 0) to noise (t = 1)
    v   = dx_t / dt = eps - x0                   what the network learns
    x0  = x_t - t v,   eps = x_t + (1 - t) v     what v says about the two ends
    L   = mean over pixels of |v_theta - v|^2
"""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

from archirf_jax.contracts import Prediction
from archirf_jax.errors import UserError
from archirf_jax.processes.base import Process, Times, backend, check_choice, check_positive, expand
from archirf_jax.processes.conversions import TABLE

PATHS = ("linear", "vp", "gvp")
PREDICTIONS = ("velocity", "x0", "eps", "v")
ENDS = ("noise", "data")
VP_BETAS = (0.1, 20.0)  # Song et al. 2021, Appendix C


@dataclasses.dataclass(frozen=True)
class RectifiedFlow(Process):
    """A flow along an interpolant of data and noise.

    Attributes:
        path: "linear" is rectified flow; "vp" has alpha = exp(-b(t) / 2) with b the integral of a beta that rises
            from 0.1 to 20 (Song et al. 2021, Eq. 33); "gvp" has alpha = cos(pi t / 2), sigma = sin(pi t / 2).
        prediction: what the network answers: "velocity" (dx_t / dt), "x0", "eps" or "v".
        time_scale: the network is given time_scale * t.
        towards: where the network's time and velocity point to. A network of SiT's is given time_scale * (1 - t) and
            answers -dx_t / dt: "data".

    Raises:
        UserError: a field out of its range.
    """

    path: str = "linear"
    prediction: str = "velocity"
    time_scale: float = 1000.0
    towards: str = "noise"

    def __post_init__(self) -> None:
        check_choice("process.path", self.path, PATHS)
        check_choice("process.prediction", self.prediction, PREDICTIONS)
        check_choice("process.towards", self.towards, ENDS)
        check_positive("process", self, "time_scale")

    def alpha(self, t: Times) -> Times:
        """The share of the data at times t."""
        if self.path == "linear":
            return 1 - t
        xp = backend(t)  # a sine of the time left, as the cosine of pi / 2 rounds to something else than 0
        return xp.sin(np.pi / 2 * (1 - t)) if self.path == "gvp" else xp.exp(-self._integrated_beta(t) / 2)

    def sigma(self, t: Times) -> Times:
        """The share of the noise at times t."""
        if self.path == "linear":
            return t
        xp = backend(t)
        return xp.sin(np.pi / 2 * t) if self.path == "gvp" else xp.sqrt(-xp.expm1(-self._integrated_beta(t)))

    def time_of_ratio(self, ratio: Times) -> Times:
        """The times at which sigma / alpha has these values."""
        xp = backend(ratio)
        if self.path == "linear":
            return ratio / (1 + ratio)
        if self.path == "gvp":
            return xp.arctan(ratio) / (np.pi / 2)
        low, high = VP_BETAS
        b = xp.log1p(ratio**2)
        return 2 * b / (low + xp.sqrt(low**2 + 2 * (high - low) * b))

    def network_time(self, t: Times) -> Times:
        """time_scale * t, or of the time that is left."""
        return self.time_scale * (t if self.towards == "noise" else 1 - t)

    def target(self, x0: jax.Array, eps: jax.Array, t: jax.Array) -> jax.Array:
        """The quantity that `prediction` names."""
        if self.is_linear_velocity:
            return eps - x0
        return self._sign * TABLE[self.prediction].combine(self.coefficients(t, x0), x0, eps)

    def interpret(self, output: jax.Array, x: jax.Array, t: jax.Array) -> Prediction:
        """Data and noise from the quantity that `prediction` names."""
        if self.is_linear_velocity:
            v, t = output, expand(t, x)
            return Prediction(x0=x - t * v, eps=x + (1 - t) * v)
        return Prediction(*TABLE[self.prediction].separate(self.coefficients(t, x), self._sign * output, x))

    @property
    def is_linear_velocity(self) -> bool:
        """Whether this is rectified flow itself."""
        return self.path == "linear" and self.prediction == "velocity" and self.towards == "noise"

    @property
    def _sign(self) -> int:
        return -1 if self.prediction == "velocity" and self.towards == "data" else 1

    def check_start(self, t: float) -> None:
        """A predicted noise says nothing about the data where none is left."""
        if self.prediction == "eps" and float(self.alpha(np.asarray(t))) == 0:
            raise UserError(
                "sample.grid",
                message=f"starts at t={t:g}, where path {self.path!r} is noise alone and prediction='eps' says nothing "
                "about the data; use the grid 'karras', or another prediction",
            )

    def _integrated_beta(self, t: Times) -> Times:
        low, high = VP_BETAS
        return (low + (high - low) / 2 * t) * t


build = RectifiedFlow
