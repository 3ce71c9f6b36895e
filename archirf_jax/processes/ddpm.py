"""Denoising diffusion in T discrete steps (Ho et al. 2020), with ADM's additions (Nichol & Dhariwal 2021, "Improved
DDPM"; Dhariwal & Nichol 2021, "Diffusion Models Beat GANs").

    x_t = sqrt(abar) x0 + sqrt(1 - abar) eps,   abar the product of 1 - beta over the steps so far

Step k = 0..T-1 lies at t = (k + 1) / T, so that abar = 1 at t = 0, and the network is told k. Between steps -log abar
runs linearly, so solvers may stop anywhere.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from archirf_jax.errors import UserError
from archirf_jax.processes import importance
from archirf_jax.processes.base import (
    ModelFn,
    Prediction,
    Process,
    Times,
    backend,
    check_choice,
    check_positive,
    expand,
)
from archirf_jax.processes.conversions import TABLE, Path
from archirf_jax.processes.respacing import respaced

LARGEST_BETA = 0.999
BETAS = {  # first and last beta of 1,000
    "linear": (1e-4, 0.02),  # Ho et al. 2020, Sec. 4
    "scaled_linear": (0.00085, 0.012),  # linear in the root; Rombach et al. 2022
    "cosine": (0.0, LARGEST_BETA),  # Nichol & Dhariwal 2021, Eq. 17; only the bound of beta counts
}
VARIANCES = ("fixed_small", "fixed_large", "learned_range")
PREDICTIONS = ("eps", "x0", "v")
WEIGHTINGS = ("none", "min_snr")
TIME_SAMPLING = ("uniform", "loss_second_moment")
LIKELIHOODS = ("exact", "adm")
GREY_STEP = 2 / 255  # between two of the 256 levels of [-1, 1]
ADM_FLOOR = math.log(1e-12)  # of the log-probabilities of ADM's approximation


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
        beta_start, beta_end: first and last beta, in (0, 1); 0 = the published ones, times 1000 / T (for "cosine"
            beta_end is the largest and does not change with T, beta_start has no meaning).
        prediction: what the network learns: "eps", "x0" or "v".
        variance: of an ancestral step: "fixed_small" (the posterior's), "fixed_large" (beta) or "learned_range": the
            network answers twice the channels, the second half between the two (Nichol & Dhariwal 2021, Eq. 15).
        likelihood: of an 8-bit image in the bound: "exact", or "adm", which approximates the normal distribution by a
            tanh as the published implementation does.
        bound_weight: the hybrid loss adds bound_weight T times the variational bound for "learned_range" (Eq. 16).
        respacing: train and bound on these steps alone, as `processes.respacing` reads it; "" = all.
        time_sampling: "uniform", or "loss_second_moment" for importance sampling (Sec. 3.3).
        weighting: "none", or "min_snr" (Hang et al. 2023, Eq. 8).
        min_snr_gamma: largest signal-to-noise ratio that counts, for "min_snr".

    Raises:
        UserError: a field out of its range.
    """

    schedule: str = "linear"
    steps: int = 1000
    beta_start: float = 0.0
    beta_end: float = 0.0
    prediction: str = "eps"
    variance: str = "fixed_large"
    likelihood: str = "exact"
    bound_weight: float = 0.001
    respacing: str = ""
    time_sampling: str = "uniform"
    weighting: str = "none"
    min_snr_gamma: float = 5.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for field, allowed in (
            ("schedule", BETAS),
            ("prediction", PREDICTIONS),
            ("variance", VARIANCES),
            ("likelihood", LIKELIHOODS),
            ("time_sampling", TIME_SAMPLING),
            ("weighting", WEIGHTINGS),
        ):
            check_choice(field, getattr(self, field), allowed)
        check_positive(self, "steps", "min_snr_gamma")
        for name in ("beta_start", "beta_end"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"config.process.{name}: {getattr(self, name)} must lie in [0, 1); 0 = the published")
        if not 0 <= self.bound_weight < math.inf:
            raise UserError(f"config.process.bound_weight: {self.bound_weight} must be a finite number, 0 or more")
        try:
            respaced(self.respacing or str(self.steps), self.steps)
        except UserError as error:
            raise UserError(f"config.process.{error}") from None

    @functools.cached_property
    def betas(self) -> np.ndarray:
        """(T,) float64."""
        first, last = self._beta_ends()
        if self.schedule == "linear":
            return np.linspace(first, last, self.steps)
        if self.schedule == "scaled_linear":
            return np.linspace(first**0.5, last**0.5, self.steps) ** 2
        edges = np.cos((np.arange(self.steps + 1) / self.steps + 0.008) / 1.008 * np.pi / 2) ** 2
        return np.minimum(1 - edges[1:] / edges[:-1], last)

    @functools.cached_property
    def minus_log_abar(self) -> np.ndarray:
        """(T + 1,) float64 at t = 0, 1/T, ..., 1; 0 at t = 0."""
        return np.concatenate([[0.0], np.cumsum(-np.log1p(-self.betas))])

    @functools.cached_property
    def visited(self) -> np.ndarray:
        """The steps of `respacing`, rising int64 (n,)."""
        return respaced(self.respacing or str(self.steps), self.steps)

    @functools.cached_property
    def posterior(self) -> Posterior:
        """Of the visited steps."""
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
        return backend(t).exp(-self._minus_log_abar(t) / 2)

    def sigma(self, t: Times) -> Times:
        """sqrt(1 - abar) at times t."""
        xp = backend(t)
        return xp.sqrt(-xp.expm1(-self._minus_log_abar(t)))

    def time_of_ratio(self, ratio: Times) -> Times:
        """The times at which sigma / alpha has these values; those beyond the last step's are its."""
        xp = backend(ratio)
        table = xp.asarray(self.minus_log_abar, ratio.dtype)
        return xp.interp(xp.log1p(ratio**2), table, xp.arange(self.steps + 1) / self.steps)

    def network_time(self, t: Times) -> Times:
        """T t - 1; a whole number where rounding alone keeps t from a step."""
        xp = backend(t)
        place = t * self.steps
        whole = xp.round(place)
        return xp.where(xp.abs(place - whole) <= 4 * self.steps * xp.finfo(t.dtype).eps, whole, place) - 1

    def time(self, network_time: Times) -> Times:
        """The inverse of `network_time`."""
        return (network_time + 1) / self.steps

    def init_memory(self) -> Any:
        """The latest losses of each visited step, where times are drawn by them."""
        return importance.init(len(self.visited)) if self.time_sampling == "loss_second_moment" else ()

    def remember(self, memory: Any, aux: dict[str, jax.Array]) -> Any:
        """The memory with the losses of this step."""
        return importance.record(memory, aux["index"], aux["raw"]) if self.init_memory() else memory

    def sample_times(self, key: jax.Array, batch: int, memory: Any = ()) -> tuple[jax.Array, jax.Array]:
        """(batch,) training times among the visited steps, and 1 / (n p) for those drawn with probability p."""
        n = len(self.visited)
        if not memory:
            index, weight = jax.random.randint(key, (batch,), 0, n), jnp.ones(batch)
        else:
            p = importance.probabilities(memory)
            index = jax.random.choice(key, n, (batch,), p=p)
            weight = 1 / (n * p[index])
        return jnp.asarray((self.visited + 1) / self.steps, weight.dtype)[index], weight

    def target(self, x0: jax.Array, eps: jax.Array, t: jax.Array) -> jax.Array:
        """The quantity `prediction` names, without a variance."""
        return TABLE[self.prediction].combine(self._at(t, x0), x0, eps)

    def interpret(self, output: jax.Array, x: jax.Array, t: jax.Array) -> Prediction:
        """Image and noise from the quantity `prediction` names, and the variance where it is learned."""
        variance = None
        if self.variance == "learned_range":
            output, variance = jnp.split(output, 2, axis=-1)
            variance = (variance + 1) / 2
        return Prediction(*TABLE[self.prediction].separate(self._at(t, x), output, x), variance)

    def step_variance(self, prediction: Prediction, small: jax.Array, large: jax.Array) -> jax.Array:
        """What `variance` names."""
        if prediction.variance is not None:  # none is left of it on the step to the data, whatever the network says
            mixed = large**prediction.variance * jnp.where(small > 0, small, 1) ** (1 - prediction.variance)
            return jnp.where(small > 0, mixed, 0)
        return large if self.variance == "fixed_large" else small

    def output_channels(self, channels: int) -> int:
        """Twice as many where the variance is learned."""
        return 2 * channels if self.variance == "learned_range" else channels

    def error(
        self, output: jax.Array, x0: jax.Array, eps: jax.Array, x: jax.Array, t: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The weighted mean square, plus the bound that alone trains a learned variance."""
        index = self._index(t)
        simple, *learned = jnp.split(output, self.output_channels(1), axis=-1)
        losses = self._weight(t) * jnp.mean(jnp.square(simple - self.target(x0, eps, t)), axis=(1, 2, 3))
        aux = {"index": index}
        if learned:
            frozen = jnp.concatenate([jax.lax.stop_gradient(simple), *learned], axis=-1)
            aux["bound"] = self.bound(self.interpret(frozen, x, t), x0, x, index)
            losses = losses + self.bound_weight * len(self.visited) * aux["bound"]
        return losses, aux

    def p_moments(self, prediction: Prediction, x: jax.Array, index: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Mean and log-variance (B, H, W, C) of the model's step from visited step index (B,) to the one before."""
        table = jax.tree.map(lambda column: expand(jnp.asarray(column, x.dtype)[index], x), self.posterior)
        mean = table.from_x0 * prediction.x0 + table.from_x * x
        if prediction.variance is not None:
            log_variance = prediction.variance * table.log_beta + (1 - prediction.variance) * table.log_small
        elif self.variance == "fixed_large":
            log_variance = jnp.where(expand(index, x) > 0, table.log_beta, table.log_small)
        else:
            log_variance = table.log_small
        return mean, jnp.broadcast_to(log_variance, x.shape)

    def bound(self, prediction: Prediction, x0: jax.Array, x: jax.Array, index: jax.Array) -> jax.Array:
        """(B,) terms of the variational bound in bits per dimension (Ho et al. 2020, Eq. 5 and 13).

        The divergence between the step of the posterior and the model's; at the first step the likelihood of the
        8-bit image itself.
        """
        mean, log_variance = self.p_moments(prediction, x, index)
        table = jax.tree.map(lambda column: expand(jnp.asarray(column, x.dtype)[index], x), self.posterior)
        true_mean = table.from_x0 * x0 + table.from_x * x
        divergence = normal_kl(true_mean, table.log_small, mean, log_variance)
        log_likelihood = discretized_log_likelihood if self.likelihood == "exact" else adm_log_likelihood
        surprise = -log_likelihood(x0, mean, log_variance / 2)
        return jnp.mean(jnp.where(expand(index, x) == 0, surprise, divergence), axis=(1, 2, 3)) / math.log(2)

    def bits_per_dim(self, key: jax.Array, model_fn: ModelFn, x0: jax.Array, y: Any) -> tuple[jax.Array, jax.Array]:
        """The variational bound of 8-bit images x0 (B, H, W, C) in [-1, 1], one draw of noise a term.

        Returns:
            (B,) bits per dimension in all, and (B, n) the terms of the visited steps; what is missing from the sum is
            the divergence of x_1 from the prior, which no training changes.
        """
        batch = x0.shape[:1]

        def term(_: None, i: jax.Array) -> tuple[None, jax.Array]:
            index = jnp.broadcast_to(i, batch)
            t = jnp.asarray((self.visited + 1) / self.steps, x0.dtype)[index]
            x = self.noised(x0, jax.random.normal(jax.random.fold_in(key, i), x0.shape), t)
            return None, self.bound(self.predict(model_fn, x, t, y), x0, x, index)

        _, terms = jax.lax.scan(term, None, jnp.arange(len(self.visited)))
        last = jnp.asarray((self.visited[-1] + 1) / self.steps, x0.dtype)
        alpha, log_variance = self.alpha(last), 2 * jnp.log(self.sigma(last))
        prior = jnp.mean(normal_kl(alpha * x0, log_variance, 0.0, 0.0), axis=(1, 2, 3)) / math.log(2)
        return jnp.sum(terms, axis=0) + prior, terms.T

    def _beta_ends(self) -> tuple[float, float]:
        """The published ones are for 1,000 steps; fewer destroy as much of an image with larger betas."""
        grown = 1.0 if self.schedule == "cosine" else 1000 / self.steps
        first, last = (min(grown * beta, LARGEST_BETA) for beta in BETAS[self.schedule])
        return self.beta_start or first, self.beta_end or last

    def _minus_log_abar(self, t: Times) -> Times:
        xp = backend(t)
        table = xp.asarray(self.minus_log_abar, t.dtype)
        return xp.interp(t * self.steps, xp.arange(self.steps + 1, dtype=t.dtype), table)

    def _at(self, t: jax.Array, like: jax.Array) -> Path:
        alpha, sigma = expand(self.alpha(t), like), expand(self.sigma(t), like)
        return Path(alpha, sigma, alpha, sigma)  # no row of `PREDICTIONS` asks for the rates

    def _index(self, t: jax.Array) -> jax.Array:
        """The places of training times t among the visited steps."""
        return jnp.searchsorted(jnp.asarray(self.visited), jnp.round(self.network_time(t)).astype(jnp.int32))

    def _weight(self, t: jax.Array) -> jax.Array:
        """Of the square error of what is predicted."""
        if self.weighting == "none":
            return jnp.ones_like(t)
        snr = 1 / self.ratio(t) ** 2
        cut = jnp.minimum(snr, self.min_snr_gamma)
        return {"x0": cut, "eps": cut / snr, "v": cut / (snr + 1)}[self.prediction]


def normal_kl(mean: Any, log_variance: Any, other_mean: Any, other_log_variance: Any) -> jax.Array:
    """The divergence of one normal distribution from another, elementwise, in nats."""
    ratio = jnp.exp(log_variance - other_log_variance)
    distance = jnp.square(mean - other_mean) * jnp.exp(-jnp.asarray(other_log_variance))
    return 0.5 * (ratio + distance - 1 + other_log_variance - log_variance)


def discretized_log_likelihood(
    x0: jax.Array,
    mean: jax.Array,
    log_std: jax.Array,
    log_cdf: Callable[[jax.Array], jax.Array] = jax.scipy.stats.norm.logcdf,
) -> jax.Array:
    """Log-probability, in nats, that a variable of a symmetric distribution rounds to the grey level x0 of 256.

    The levels are those of [-1, 1], and the outermost reach to infinity (Ho et al. 2020, Eq. 13). The probability is a
    difference of tails on the side where they are small, so that no level is lost to rounding. The distribution is
    normal unless `log_cdf` is another's.
    """
    scale = jnp.exp(-log_std)
    centre = (x0 - mean) * scale
    half = GREY_STEP / 2 * scale
    flip = jnp.where(centre > 0, -1.0, 1.0)
    upper = jnp.where(flip > 0, x0 > 0.999, x0 < -0.999)
    lower = jnp.where(flip > 0, x0 < -0.999, x0 > 0.999)
    log_high = jnp.where(upper, 0.0, log_cdf(flip * centre + half))
    log_low = log_cdf(flip * centre - half)
    gap = jnp.minimum(log_low - log_high, -jnp.finfo(x0.dtype).eps)
    return log_high + jnp.where(lower, 0.0, jnp.log1p(-jnp.exp(gap)))


def adm_log_likelihood(x0: jax.Array, mean: jax.Array, log_std: jax.Array) -> jax.Array:
    """`discretized_log_likelihood` with ADM's distribution, (1 + tanh(sqrt(2 / pi) (z + 0.044715 z^3))) / 2, and floor.

    Within 2e-4 of the normal distribution, with lighter tails; no probability counts as less than 1e-12.
    """

    def log_cdf(z: jax.Array) -> jax.Array:
        return jax.nn.log_sigmoid(2 * math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))

    return jnp.maximum(discretized_log_likelihood(x0, mean, log_std, log_cdf), ADM_FLOOR)


build = DDPM
