"""The variational bound of a DDPM (Ho et al. 2020, Eq. 5 and 13; Nichol & Dhariwal 2021, "Improved DDPM")."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from archirf_jax.contracts import Condition, ModelFn, Prediction
from archirf_jax.processes.base import ask, expand
from archirf_jax.processes.ddpm import DDPM

GREY_STEP = 2 / 255  # between two of the 256 levels of [-1, 1]
ADM_FLOOR = math.log(1e-12)  # of the log-probabilities of ADM's approximation
LIKELIHOODS = ("exact", "adm")


def bound(
    process: DDPM, prediction: Prediction, x0: jax.Array, x: jax.Array, index: jax.Array, likelihood: str = "exact"
) -> jax.Array:
    """(B,) terms of the bound in bits per dimension, of the visited steps index (B,).

    A term is the divergence between the step of the posterior and the model's; at the first step it is the
    log-likelihood of the 8-bit image itself.

    Args:
        process: whose posterior it is.
        prediction: of x.
        x0: 8-bit images in [-1, 1].
        x: noised images.
        index: places among the visited steps.
        likelihood: "exact", or "adm", which approximates the normal distribution by a tanh as published.
    """
    mean, log_variance = process.p_moments(prediction, x, index)
    table = jax.tree.map(lambda column: expand(jnp.asarray(column, x.dtype)[index], x), process.posterior)
    true_mean = table.from_x0 * x0 + table.from_x * x
    divergence = normal_kl(true_mean, table.log_small, mean, log_variance)
    log_likelihood = discretized_log_likelihood if likelihood == "exact" else adm_log_likelihood
    surprise = -log_likelihood(x0, mean, log_variance / 2)
    return _mean(jnp.where(expand(index, x) == 0, surprise, divergence)) / math.log(2)


def bits_per_dim(
    process: DDPM, key: jax.Array, model_fn: ModelFn, x0: jax.Array, condition: Condition
) -> tuple[jax.Array, jax.Array]:
    """The bound of 8-bit images x0 (B, ...) in [-1, 1], with one draw of noise a term.

    Returns:
        (B,) bits per dimension in all, and (B, n) the terms of the visited steps; what is missing from the sum is the
        divergence of x_1 from the prior, which no training changes.
    """
    batch = x0.shape[:1]

    def term(_: None, i: jax.Array) -> tuple[None, jax.Array]:
        index = jnp.broadcast_to(i, batch)
        t = jnp.asarray(process.times, x0.dtype)[index]
        x = process.noised(x0, jax.random.normal(jax.random.fold_in(key, i), x0.shape), t)
        prediction = process.interpret(ask(process, model_fn, x, t, condition)[0], x, t)
        return None, bound(process, prediction, x0, x, index)

    _, terms = jax.lax.scan(term, None, jnp.arange(len(process.visited)))
    last = jnp.asarray(process.times[-1], x0.dtype)
    alpha, log_variance = process.alpha(last), 2 * jnp.log(process.sigma(last))
    prior = _mean(normal_kl(alpha * x0, log_variance, 0.0, 0.0)) / math.log(2)
    return jnp.sum(terms, axis=0) + prior, terms.T


def _mean(x: jax.Array) -> jax.Array:
    return jnp.mean(x, axis=tuple(range(1, x.ndim)))


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
