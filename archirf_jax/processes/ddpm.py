"""Denoising diffusion in T discrete steps (Ho et al. 2020), with ADM's additions (Nichol & Dhariwal 2021, "Improved
DDPM"; Dhariwal & Nichol 2021, "Diffusion Models Beat GANs").

    x_t = sqrt(abar) x0 + sqrt(1 - abar) eps,   abar the product of 1 - beta over the steps so far

Step k = 0..T-1 lies at t = (k + 1) / T, so that abar = 1 at t = 0, and the network is given k. Between steps -log abar
runs linearly, so solvers may stop anywhere.

With a zero terminal SNR (Lin et al. 2023, "Common Diffusion Noise Schedules and Sample Steps are Flawed", Algorithm 1)
abar is 0 at the last step: training then meets pure noise, from which sampling starts. On the way to it, where
-log abar ends at infinity, alpha runs linearly.
"""

from __future__ import annotations

import dataclasses
import functools
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from archirf_jax.contracts import Prediction
from archirf_jax.errors import UserError
from archirf_jax.processes.base import Process, Times, backend, check_choice, check_positive, expand
from archirf_jax.processes.conversions import TABLE
from archirf_jax.processes.respacing import respaced

LARGEST_BETA = 0.999
BETAS = {  # first and last beta of 1,000
    "linear": (1e-4, 0.02),  # Ho et al. 2020, Sec. 4
    "scaled_linear": (0.00085, 0.012),  # linear in the root; Rombach et al. 2022
    "cosine": (0.0, LARGEST_BETA),  # Nichol & Dhariwal 2021, Eq. 17; only the bound of beta counts
}
VARIANCES = ("fixed_small", "fixed_large", "learned_range")
PREDICTIONS = ("eps", "x0", "v")


class Posterior(NamedTuple):
    """q(x_s | x_t, x0) of each visited step t and the visited step s before it (or the data); float64 (n,).

    Attributes:
        from_x0: factor of x0 in the mean (Ho et al. 2020, Eq. 7).
        from_x: factor of x_t in the mean.
        log_small: log-variance of the posterior; the first, which is 0, takes the value of the second.
        log_beta: log of the variance 1 - abar_t / abar_s of the forward step.
    """

    from_x0: np.ndarray
    from_x: np.ndarray
    log_small: np.ndarray
    log_beta: np.ndarray


@dataclasses.dataclass(frozen=True)
class DDPM(Process):
    """Denoising diffusion.

    Attributes:
        schedule: how beta runs: "linear", "scaled_linear" or "cosine".
        steps: T, the number of betas.
        beta_start, beta_end: first and last beta, in (0, 1); None = the published ones, times 1000 / T (for "cosine"
            beta_end is the largest and does not change with T, beta_start has no meaning).
        prediction: what the network answers: "eps", "x0" or "v".
        variance: of an ancestral step: "fixed_small" (the posterior's), "fixed_large" (beta) or "learned_range": the
            network answers twice the channels, the second half between the two (Nichol & Dhariwal 2021, Eq. 15).
        respacing: train and bound on these steps alone, as `processes.respacing` reads it; None = all.
        zero_terminal_snr: move and scale sqrt(abar) so that the last is 0 and the first stays.

    Raises:
        UserError: a field out of its range, or "eps", which says nothing of the data at a zero SNR.
    """

    schedule: str = "linear"
    steps: int = 1000
    beta_start: float | None = None
    beta_end: float | None = None
    prediction: str = "eps"
    variance: str = "fixed_large"
    respacing: str | None = None
    zero_terminal_snr: bool = False

    def __post_init__(self) -> None:
        for field, allowed in (("schedule", BETAS), ("prediction", PREDICTIONS), ("variance", VARIANCES)):
            check_choice(f"process.{field}", getattr(self, field), allowed)
        check_positive("process", self, "steps")
        for name in ("beta_start", "beta_end"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1:
                raise UserError(f"process.{name}", value, "must lie in (0, 1); None takes the published one")
        respaced(self.respacing or str(self.steps), self.steps, "process.respacing")
        if self.zero_terminal_snr:
            self._check_zero_terminal_snr()

    @functools.cached_property
    def betas(self) -> np.ndarray:
        """(T,) float64; with a zero terminal SNR the last is 1."""
        return to_zero_snr(self._schedule()) if self.zero_terminal_snr else self._schedule()

    def _schedule(self) -> np.ndarray:
        first, last = self._beta_ends()
        if self.schedule == "linear":
            return np.linspace(first, last, self.steps)
        if self.schedule == "scaled_linear":
            return np.linspace(first**0.5, last**0.5, self.steps) ** 2
        edges = np.cos((np.arange(self.steps + 1) / self.steps + 0.008) / 1.008 * np.pi / 2) ** 2
        return np.minimum(1 - edges[1:] / edges[:-1], last)

    @functools.cached_property
    def minus_log_abar(self) -> np.ndarray:
        """(T + 1,) float64 at t = 0, 1/T, ..., 1; 0 at t = 0, and infinite at t = 1 with a zero terminal SNR."""
        with np.errstate(divide="ignore"):
            return np.concatenate([[0.0], np.cumsum(-np.log1p(-self.betas))])

    @functools.cached_property
    def visited(self) -> np.ndarray:
        """The steps of `respacing`, rising int64 (n,)."""
        return respaced(self.respacing or str(self.steps), self.steps, "process.respacing")

    @functools.cached_property
    def posterior(self) -> Posterior:
        """The posterior between visited steps."""
        log_abar = -self.minus_log_abar[np.concatenate([[0], self.visited + 1])]
        abar, before = np.exp(log_abar[1:]), np.exp(log_abar[:-1])
        beta = -np.expm1(np.diff(log_abar))
        small = beta * (1 - before) / (1 - abar)
        return Posterior(
            from_x0=beta * np.sqrt(before) / (1 - abar),
            from_x=(1 - before) * np.sqrt(1 - beta) / (1 - abar),
            log_small=np.log(np.append(small[1:2] if len(small) > 1 else beta, small[1:])),
            log_beta=np.log(beta),
        )

    def alpha(self, t: Times) -> Times:
        """sqrt(abar) at times t."""
        alpha = backend(t).exp(-self._minus_log_abar(t) / 2)
        return alpha * self._left(t) if self.zero_terminal_snr else alpha

    def sigma(self, t: Times) -> Times:
        """sqrt(1 - abar) at times t."""
        xp = backend(t)
        log_abar = -self._minus_log_abar(t)
        square = -xp.expm1(log_abar)
        return xp.sqrt(square + xp.exp(log_abar) * (1 - self._left(t) ** 2) if self.zero_terminal_snr else square)

    def time_of_ratio(self, ratio: Times) -> Times:
        """The times at which sigma / alpha has these values; those beyond the last step's are its."""
        xp = backend(ratio)
        places, table = self._knots(xp, ratio.dtype)
        wanted = xp.log1p(ratio**2)
        t = xp.interp(wanted, table, places / self.steps)
        left = xp.exp((table[-1] - wanted) / 2)  # of alpha, where these lie on the way to a zero SNR
        return xp.where(left < 1, (self.steps - left) / self.steps, t) if self.zero_terminal_snr else t

    def network_time(self, t: Times) -> Times:
        """T t - 1; a whole number where rounding alone keeps t from a step."""
        xp = backend(t)
        place = t * self.steps
        whole = xp.round(place)
        return xp.where(xp.abs(place - whole) <= 4 * self.steps * xp.finfo(t.dtype).eps, whole, place) - 1

    @functools.cached_property
    def times(self) -> np.ndarray:
        """The times of the visited steps, rising float64 (n,)."""
        return (self.visited + 1) / self.steps

    def target(self, x0: jax.Array, eps: jax.Array, t: jax.Array) -> jax.Array:
        """The quantity that `prediction` names, without a variance."""
        return TABLE[self.prediction].combine(self.coefficients(t, x0), x0, eps)

    def interpret(self, output: jax.Array, x: jax.Array, t: jax.Array) -> Prediction:
        """Data and noise from the quantity that `prediction` names, and the variance where it is learned."""
        variance = None
        if self.variance == "learned_range":
            output, variance = jnp.split(output, 2, axis=-1)
            variance = (variance + 1) / 2
        return Prediction(*TABLE[self.prediction].separate(self.coefficients(t, x), output, x), variance)

    def step_variance(self, prediction: Prediction, small: jax.Array, large: jax.Array) -> jax.Array:
        """The one that `variance` names."""
        if prediction.variance is not None:  # the step to the data has none, whatever the network says
            mixed = large**prediction.variance * jnp.where(small > 0, small, 1) ** (1 - prediction.variance)
            return jnp.where(small > 0, mixed, 0)
        return large if self.variance == "fixed_large" else small

    def output_channels(self, channels: int) -> int:
        """Twice as many where the variance is learned."""
        return 2 * channels if self.variance == "learned_range" else channels

    def p_moments(self, prediction: Prediction, x: jax.Array, index: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Mean and log-variance, like x, of the model's step from visited step index (B,) to the one before."""
        table = jax.tree.map(lambda column: expand(jnp.asarray(column, x.dtype)[index], x), self.posterior)
        mean = table.from_x0 * prediction.x0 + table.from_x * x
        if prediction.variance is not None:
            log_variance = prediction.variance * table.log_beta + (1 - prediction.variance) * table.log_small
        elif self.variance == "fixed_large":
            log_variance = jnp.where(expand(index, x) > 0, table.log_beta, table.log_small)
        else:
            log_variance = table.log_small
        return mean, jnp.broadcast_to(log_variance, x.shape)

    def _beta_ends(self) -> tuple[float, float]:
        """The published ones are for 1,000 steps; fewer destroy as much of an image with larger betas."""
        grown = 1.0 if self.schedule == "cosine" else 1000 / self.steps
        first, last = (min(grown * beta, LARGEST_BETA) for beta in BETAS[self.schedule])
        return self.beta_start or first, self.beta_end or last

    def _minus_log_abar(self, t: Times) -> Times:
        """Of the last finite value where a zero SNR follows."""
        xp = backend(t)
        places, table = self._knots(xp, t.dtype)
        return np.interp(t * self.steps, places, table) if xp is np else _between(t * self.steps, table)

    def _knots(self, xp: ModuleType, dtype: Any) -> tuple[Any, Any]:
        """The places 0, 1, ... where -log abar is finite, and its values."""
        table = self.minus_log_abar[:-1] if self.zero_terminal_snr else self.minus_log_abar
        return xp.arange(len(table), dtype=dtype), xp.asarray(table, dtype)

    def _left(self, t: Times) -> Times:
        """The share of alpha that the way to a zero SNR has left: 1 before the last step, and then linearly to 0."""
        return backend(t).minimum(self.steps - t * self.steps, 1)

    def _check_zero_terminal_snr(self) -> None:
        if self.prediction == "eps":
            raise UserError(
                *("process.prediction", "eps"),
                "cannot be used with zero_terminal_snr, as the noise in pure noise says nothing of the data; "
                "take 'v' or 'x0'",
            )
        if self.steps < 2:
            raise UserError("process.steps", self.steps, "must be 2 or more with zero_terminal_snr")

    def index(self, t: jax.Array) -> jax.Array:
        """The places (B,) int32 of training times t (B,) among the visited steps."""
        return jnp.searchsorted(jnp.asarray(self.visited), jnp.round(self.network_time(t)).astype(jnp.int32))


@jax.jit
def _between(place: jax.Array, table: jax.Array) -> jax.Array:
    """`jnp.interp` bit for bit, without its search for the two values of a table that lie around each place."""
    after = jnp.clip(jnp.floor(place).astype(jnp.int32) + 1, 1, len(table) - 1)
    before, first, last = after - 1, place < 0, place > len(table) - 1
    between = table[before] + (place - before) * (table[after] - table[before])
    return jnp.where(first, table[0], jnp.where(last, table[-1], between))


def to_zero_snr(betas: np.ndarray) -> np.ndarray:
    """Betas (T,), T above 1, whose last abar is 0 and whose first is as before (Lin et al. 2023, Algorithm 1)."""
    root = np.sqrt(np.cumprod(1 - betas))
    abar = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    return 1 - abar / np.append(1, abar[:-1])


build = DDPM
