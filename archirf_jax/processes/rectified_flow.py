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
import jax.numpy as jnp
import numpy as np

from archirf_jax.errors import UserError
from archirf_jax.processes import times
from archirf_jax.processes.base import (
    Prediction,
    Process,
    Times,
    backend,
    check_choice,
    check_positive,
    expand,
)
from archirf_jax.processes.conversions import TABLE, Path

TIME_DISTRIBUTIONS = ("uniform", "logit_normal", "mode", "cosmap")
PATHS = ("linear", "vp", "gvp")
PREDICTIONS = ("velocity", "x0", "eps", "v")
VP_BETAS = (0.1, 20.0)  # Song et al. 2021, Appendix C


@dataclasses.dataclass(frozen=True)
class RectifiedFlow(Process):
    """A flow along an interpolant of image and noise.

    Attributes:
        path: "linear" is rectified flow; "vp" has alpha = exp(-b(t) / 2) with b the integral of a beta that rises
            from 0.1 to 20 (Song et al. 2021, Eq. 33); "gvp" has alpha = cos(pi t / 2), sigma = sin(pi t / 2).
        prediction: what the network learns: "velocity" (dx_t / dt), "x0", "eps" or "v".
        time_distribution: how training times are drawn: "uniform", "logit_normal", "mode" or "cosmap".
        logit_mean: mean of logit(t); above 0 means noisier.
        logit_std: standard deviation of logit(t), above 0.
        mode_scale: -1 to 1.75; weight of the middle times for "mode".
        shift: training times are moved by `times.shift_time`.
        weigh_as: a time distribution, whose density over that of the times drawn weighs the losses: their expectation
            is then that of `weigh_as`, whatever the times; "" = no weights. The shift stays with the times drawn.
        time_scale: the network is told time_scale * t.

    Raises:
        UserError: a field out of its range.
    """

    path: str = "linear"
    prediction: str = "velocity"
    time_distribution: str = "logit_normal"
    logit_mean: float = 0.0
    logit_std: float = 1.0
    mode_scale: float = 1.29
    shift: float = 1.0
    weigh_as: str = ""
    time_scale: float = 1000.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("path", self.path, PATHS)
        check_choice("prediction", self.prediction, PREDICTIONS)
        check_choice("time_distribution", self.time_distribution, TIME_DISTRIBUTIONS)
        check_choice("weigh_as", self.weigh_as or "uniform", TIME_DISTRIBUTIONS)
        check_positive(self, "logit_std", "shift", "time_scale")
        self._distribution("mode")

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
        """time_scale * t."""
        return self.time_scale * t

    def time(self, network_time: Times) -> Times:
        """The inverse of `network_time`."""
        return network_time / self.time_scale

    def time_density(self, t: jax.Array) -> jax.Array:
        """The density of the training times at t."""
        return times.Shifted(self._distribution(self.time_distribution), self.shift).density(t)

    def sample_times(self, key: jax.Array, batch: int, memory: object = ()) -> tuple[jax.Array, jax.Array]:
        """(batch,) training times and their weights, 1 unless `weigh_as` is set."""
        t = times.Shifted(self._distribution(self.time_distribution), self.shift).sample(key, batch)
        if not self.weigh_as:
            return t, jnp.ones_like(t)
        return t, self._distribution(self.weigh_as).density(t) / self.time_density(t)

    def target(self, x0: jax.Array, eps: jax.Array, t: jax.Array) -> jax.Array:
        """The quantity `prediction` names."""
        return TABLE[self.prediction].combine(self._at(t, x0), x0, eps)

    def interpret(self, output: jax.Array, x: jax.Array, t: jax.Array) -> Prediction:
        """Image and noise from the quantity `prediction` names."""
        return Prediction(*TABLE[self.prediction].separate(self._at(t, x), output, x))

    def check_start(self, t: float) -> None:
        """A predicted noise says nothing of the image where there is no image left."""
        if self.prediction == "eps" and float(self.alpha(np.asarray(t))) == 0:
            raise UserError(
                f"grid: starts at t={t:g}, where path {self.path!r} is noise alone and prediction='eps' says nothing "
                "of the image; use the grid 'karras', or another prediction"
            )

    def _at(self, t: jax.Array, like: jax.Array) -> Path:
        ones = jnp.ones_like(t)
        alpha, alpha_rate = jax.jvp(self.alpha, (t,), (ones,))
        sigma, sigma_rate = jax.jvp(self.sigma, (t,), (ones,))
        return Path(*(expand(value, like) for value in (alpha, sigma, alpha_rate, sigma_rate)))

    def _integrated_beta(self, t: Times) -> Times:
        low, high = VP_BETAS
        return (low + (high - low) / 2 * t) * t

    def _distribution(self, name: str) -> times.Uniform | times.LogitNormal | times.Mode | times.CosMap:
        if name == "logit_normal":
            return times.LogitNormal(self.logit_mean, self.logit_std)
        if name == "mode":
            return times.Mode(self.mode_scale)
        return times.CosMap() if name == "cosmap" else times.Uniform()


build = RectifiedFlow
