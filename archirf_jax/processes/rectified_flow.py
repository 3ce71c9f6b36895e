"""Rectified flow (Liu et al. 2022, "Flow Straight and Fast"; SD3: Esser et al. 2024, "Scaling Rectified Flow
Transformers"), and its relatives with the curved paths of `interpolants`.

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
from archirf_jax.processes.base import Process, Times, check_choice, check_positive, expand
from archirf_jax.processes.conversions import TABLE
from archirf_jax.processes.interpolants import PATHS

PREDICTIONS = ("velocity", "x0", "eps", "v")
ENDS = ("noise", "data")


@dataclasses.dataclass(frozen=True)
class RectifiedFlow(Process):
    """A flow along an interpolant of data and noise.

    Attributes:
        path: one of `interpolants.PATHS`; "linear" is rectified flow.
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
        check_choice("process.path", self.path, tuple(PATHS))
        check_choice("process.prediction", self.prediction, PREDICTIONS)
        check_choice("process.towards", self.towards, ENDS)
        check_positive("process", self, "time_scale")

    def alpha(self, t: Times) -> Times:
        """The share of the data at times t."""
        return PATHS[self.path].alpha(t)

    def sigma(self, t: Times) -> Times:
        """The share of the noise at times t."""
        return PATHS[self.path].sigma(t)

    def time_of_ratio(self, ratio: Times) -> Times:
        """The times at which sigma / alpha has these values."""
        return PATHS[self.path].time_of_ratio(ratio)

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


build = RectifiedFlow
