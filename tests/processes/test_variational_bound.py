"""Laws of the variational bound: divergences, likelihoods of grey levels, and the code length that they add up to."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from archirf_jax.contracts import ModelFn, Prediction
from archirf_jax.processes import oracles
from archirf_jax.processes.base import expand
from archirf_jax.processes.ddpm import DDPM
from archirf_jax.processes.variational_bound import (
    adm_log_likelihood,
    bits_per_dim,
    bound,
    discretized_log_likelihood,
    normal_kl,
)
from tests.processes.examples import bayes, images, knows, within_error

pytestmark = pytest.mark.usefixtures("float64")
X0: Any = images(64)
LEVELS = np.linspace(-1, 1, 256)
likelihood = jax.jit(discretized_log_likelihood)


@pytest.mark.parametrize("numbers", [(0.0, 1.0, 0.0, 1.0), (0.3, 0.5, -0.4, 1.1), (2.0, 1.5, 0.0, 0.6)])
def test_the_divergence_is_its_integral_and_zero_only_between_equals(numbers: tuple[float, ...]) -> None:
    mean, std, other_mean, other_std = numbers
    p, q = scipy.stats.norm(mean, std), scipy.stats.norm(other_mean, other_std)
    expected, _ = scipy.integrate.quad(lambda x: p.pdf(x) * (p.logpdf(x) - q.logpdf(x)), mean - 12, mean + 12)
    divergence = float(jax.jit(normal_kl)(mean, np.log(std**2), other_mean, np.log(other_std**2)))
    assert divergence == pytest.approx(expected, abs=1e-9)
    assert (divergence > 0) == (p.mean() != q.mean() or p.std() != q.std())


@pytest.mark.parametrize("std", [1e-5, 1e-3, 0.01, 0.3, 1.0, 100.0])
@pytest.mark.parametrize("mean", [0.0, 0.3001, 1.0, -30.0, 1000.0])
def test_the_probabilities_of_the_grey_levels_add_up_to_one(mean: float, std: float) -> None:
    log_p = likelihood(*(jnp.asarray(value, jnp.float32) for value in (LEVELS, mean, np.log(std))))
    assert np.all(np.isfinite(log_p)) and np.all(np.asarray(log_p) <= 0)
    assert np.sum(np.exp(np.asarray(log_p, np.float64))) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 0.3), (0.3, 0.02), (-1.2, 0.5), (0.9, 2.0)])
def test_the_probability_of_a_grey_level_is_that_of_its_interval(mean: float, std: float) -> None:
    edges = np.concatenate([[-np.inf], (LEVELS[1:] + LEVELS[:-1]) / 2, [np.inf]])
    log_p = likelihood(jnp.asarray(LEVELS), mean, np.log(std))
    expected = np.diff(scipy.stats.norm.cdf(edges, mean, std))
    seen = expected > 1e-6  # scipy's difference of large numbers loses the rest
    np.testing.assert_allclose(np.exp(log_p)[seen], expected[seen], rtol=1e-7)


def test_adms_likelihood_is_that_of_its_tanh_and_never_below_its_floor() -> None:
    edges = np.concatenate([[-np.inf], (LEVELS[1:] + LEVELS[:-1]) / 2, [np.inf]])
    for mean, std in ((0.0, 0.3), (0.9, 0.05), (-1.2, 2.0), (0.3, 1e-3)):
        z = np.clip((edges - mean) / std, -30, 30)
        cdf = (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3))) / 2
        assert np.max(np.abs(cdf - scipy.stats.norm.cdf(z))) < 2e-4
        log_p = jax.jit(adm_log_likelihood)(jnp.asarray(LEVELS), mean, np.log(std))
        np.testing.assert_allclose(np.exp(log_p), np.maximum(np.diff(cdf), 1e-12), rtol=1e-6, atol=1e-12)
        assert np.min(log_p) >= np.log(1e-12)


def test_the_first_term_of_the_bound_takes_the_likelihood_that_is_named() -> None:
    process, x = DDPM(), jnp.full((1, 1, 1, 1), 0.2)
    prediction = Prediction(jnp.full((1, 1, 1, 1), 0.201), jnp.zeros((1, 1, 1, 1)))
    for name, function in (("exact", discretized_log_likelihood), ("adm", adm_log_likelihood)):
        term = jax.jit(lambda x, name=name: bound(process, prediction, x, x, jnp.zeros(1, int), name))(x)
        expected = -function(x, prediction.x0, process.posterior.log_small[0] / 2) / np.log(2)
        np.testing.assert_allclose(term, np.ravel(expected), rtol=1e-9)


def rounded(x: Any) -> np.ndarray:
    """To the grey levels."""
    return np.round((np.clip(x, -1, 1) + 1) * 127.5) / 127.5 - 1


@pytest.mark.parametrize(
    ("variance", "respacing"), [("fixed_small", None), ("fixed_large", "8"), ("learned_range", "8")]
)
def test_the_bound_of_the_network_that_knows_the_image_is_a_closed_form(variance: str, respacing: str | None) -> None:
    process = DDPM(variance=variance, respacing=respacing, steps=40, beta_end=0.2)
    x0 = rounded(X0[:3])

    def model_fn(x: jax.Array, t: jax.Array, condition: Any, *, s: Any = None) -> Any:
        output, _ = knows(process, x0)(x, t, condition)
        return output.at[..., 2:].set(0.2), {}  # 0.6 of the way between the two variances, where it is learned

    bits = jax.jit(lambda x0: bits_per_dim(process, jax.random.key(0), model_fn, x0, {}))
    total, terms = bits(jnp.asarray(x0))
    _, _, small, beta = bayes(process)
    log_small, log_beta = np.log(np.append(small[1], small[1:])), np.log(beta)
    share: Any = {"fixed_small": 0, "fixed_large": np.arange(len(beta)) > 0, "learned_range": 0.6}[variance]
    log_variance = log_small + share * (log_beta - log_small)
    gap = log_small - log_variance
    expected = np.tile(0.5 * (np.exp(gap) - 1 - gap), (3, 1))
    half, std = 1 / 255, np.exp(log_variance[0] / 2)
    inside = np.abs(x0) < 0.999
    chance = np.where(inside, 2 * scipy.stats.norm.cdf(half / std) - 1, scipy.stats.norm.cdf(half / std))
    expected[:, 0] = -np.mean(np.log(chance), axis=(1, 2, 3))
    np.testing.assert_allclose(terms, expected / np.log(2), atol=1e-9)
    abar = np.prod(1 - process.betas)
    prior = 0.5 * (1 - abar + abar * x0**2 - 1 - np.log(1 - abar)).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(total, (expected.sum(axis=1) + prior) / np.log(2), rtol=1e-9)


def perfect_step(process: DDPM, std: float) -> ModelFn:
    """For images of normal pixels: the mean and the variance of the true step back, which is normal too."""
    data = oracles.gaussian(0.0, std, (4, 4, 1))
    table = process.posterior
    a, s = (f((process.visited + 1) / process.steps) for f in (process.alpha, process.sigma))
    unknown = std**2 * s**2 / (a**2 * std**2 + s**2)  # variance of the image given x_t
    small = np.append(0, np.exp(table.log_small[1:]))
    log_variance = np.log(small + table.from_x0**2 * unknown)
    share = (log_variance - table.log_small) / (table.log_beta - table.log_small)

    def model_fn(x: jax.Array, t: jax.Array, condition: Any, *, s: Any = None) -> Any:
        output, _ = oracles.network(process, data)(x, t, condition)
        v = expand(jnp.asarray(2 * share - 1, x.dtype)[jnp.searchsorted(jnp.asarray(process.visited), t)], x)
        return output.at[..., 1:].set(jnp.broadcast_to(v, x.shape)), {}

    return model_fn


@pytest.mark.parametrize("respacing", [None, "6"])
def test_the_bound_of_the_perfect_network_is_the_code_length_of_the_images(respacing: str | None) -> None:
    """However few the steps, as the steps back through normal data are normal; any other variance is worse."""
    process = DDPM(steps=20, beta_end=0.9, variance="learned_range", respacing=respacing)
    x0 = rounded(0.3 * np.random.default_rng(0).normal(size=(256, 4, 4, 1)))
    bits = jax.jit(lambda key, x0: bits_per_dim(process, key, perfect_step(process, 0.3), x0, {})[0])
    total = bits(jax.random.key(0), jnp.asarray(x0))
    length = -scipy.stats.norm.logpdf(x0, 0, 0.3).mean(axis=(1, 2, 3)) / np.log(2) + np.log2(255 / 2)
    assert within_error(np.asarray(total) - length, 0.0)
    assert np.std(np.asarray(total) - length) < 0.4
