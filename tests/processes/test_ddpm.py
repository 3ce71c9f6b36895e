"""Laws of denoising diffusion: its betas, its posterior, its bound, and what its losses weigh."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from archirf_jax import processes, registry
from archirf_jax.errors import UserError
from archirf_jax.processes import oracles
from archirf_jax.processes.base import ModelFn, Prediction, expand
from archirf_jax.processes.ddpm import DDPM, adm_log_likelihood, discretized_log_likelihood, normal_kl
from tests.processes.examples import Spy, images, knows, within_error

pytestmark = pytest.mark.usefixtures("float64")
X0: Any = images(64)
Y = np.zeros(64, np.int32)
NULL = np.int32(1)
LEVELS = np.linspace(-1, 1, 256)
likelihood = jax.jit(discretized_log_likelihood)
SCHEDULES = ("linear", "scaled_linear", "cosine")
RESPACINGS = ("", "7", "10,20,30", "ddim50")
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES)


def test_the_linear_schedule_has_the_thousand_betas_of_the_paper() -> None:
    betas = DDPM().betas
    assert betas.shape == (1000,) and betas.dtype == np.float64
    np.testing.assert_allclose(betas[[0, -1]], [1e-4, 0.02], rtol=1e-12)
    np.testing.assert_allclose(np.diff(betas), (0.02 - 1e-4) / 999, rtol=1e-9)
    np.testing.assert_allclose(np.prod(1 - betas), 4.0358e-5, rtol=1e-5)


def test_the_scaled_linear_schedule_is_even_in_the_root() -> None:
    betas = DDPM(schedule="scaled_linear").betas
    np.testing.assert_allclose(betas[[0, -1]], [0.00085, 0.012], rtol=1e-12)
    np.testing.assert_allclose(np.diff(np.sqrt(betas)), (0.012**0.5 - 0.00085**0.5) / 999, rtol=1e-9)


def test_the_cosine_schedule_is_the_squared_cosine_until_beta_is_cut() -> None:
    """Nichol & Dhariwal 2021, Eq. 17."""
    process = DDPM(schedule="cosine")
    f = np.cos((np.arange(1001) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(np.cumprod(1 - process.betas)[:-1], (f / f[0])[1:-1], rtol=1e-9)
    assert process.betas.max() == process.betas[-1] == 0.999
    np.testing.assert_allclose(DDPM(schedule="cosine", beta_end=0.5).betas, np.minimum(process.betas, 0.5))


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "cosine"])
@pytest.mark.parametrize("steps", [40, 250, 4000])
def test_fewer_or_more_steps_destroy_as_much_of_an_image_as_a_thousand(schedule: str, steps: int) -> None:
    left, usual = (DDPM(schedule=schedule, steps=count).alpha(np.asarray([0.3, 1.0])) for count in (steps, 1000))
    assert left[0] == pytest.approx(usual[0], rel=0.05)
    assert left[1] < 0.08


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear"])
def test_the_ends_of_beta_can_be_chosen(schedule: str) -> None:
    betas = DDPM(schedule=schedule, steps=30, beta_start=0.01, beta_end=0.3).betas
    np.testing.assert_allclose(betas[[0, -1]], [0.01, 0.3], rtol=1e-12)


@every_schedule
def test_image_and_noise_have_the_shares_of_the_steps_so_far(schedule: str) -> None:
    process = DDPM(schedule=schedule)
    t, abar = np.arange(1, 1001) / 1000, np.cumprod(1 - process.betas)
    np.testing.assert_allclose(process.alpha(t) ** 2, abar, rtol=1e-9)
    np.testing.assert_allclose(process.sigma(t) ** 2, 1 - abar, rtol=1e-9)
    assert process.alpha(np.asarray(0.0)) == 1 and process.sigma(np.asarray(0.0)) == 0
    between = (np.arange(1000) + 0.5) / 1000
    np.testing.assert_allclose(process.alpha(between) ** 2, np.sqrt(abar * np.append(1, abar[:-1])), rtol=1e-9)
    np.testing.assert_allclose(process.alpha(between) ** 2 + process.sigma(between) ** 2, 1, rtol=1e-12)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("steps", [1000, 37, 4000])
def test_the_network_is_told_whole_numbers_at_steps_and_fractions_between(steps: int, dtype: Any) -> None:
    process = DDPM(steps=steps)
    t = jnp.asarray((np.arange(steps) + 1) / steps, dtype)
    for told in (process.network_time(t), process.network_time(np.asarray(t)), jax.jit(process.network_time)(t)):
        assert told.dtype == dtype
        np.testing.assert_array_equal(told, np.arange(steps))
    np.testing.assert_allclose(process.network_time(t - 0.25 / steps), np.arange(steps) - 0.25, atol=1e-3)


@pytest.mark.parametrize("respacing", RESPACINGS)
def test_training_times_are_the_visited_steps_alike(respacing: str) -> None:
    process = DDPM(steps=100, respacing=respacing)
    t, weights = jax.jit(lambda key: process.sample_times(key, 20000))(jax.random.key(0))
    step = np.asarray(process.network_time(t)).astype(int)
    assert set(step) == set(process.visited)
    assert scipy.stats.chisquare(np.bincount(np.searchsorted(process.visited, step))).pvalue > 1e-3
    np.testing.assert_array_equal(weights, 1)
    _, aux = process.loss(jax.random.key(0), Spy(process), X0, Y, NULL)
    np.testing.assert_array_equal(process.visited[aux["index"]], np.round(100 * aux["t"]) - 1)


def bayes(process: DDPM) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """q(x_s | x_t, x0) of the visited steps as a product of normal densities of x_s.

    Of x_t given x_s, and of x_s given x0: factors of x0 and x_t in the mean, the variance, and that of the first.
    """
    abar = np.cumprod(1 - process.betas)[process.visited]
    before = np.append(1.0, abar[:-1])
    kept = np.sqrt(abar / before)
    beta = 1 - abar / before
    with np.errstate(divide="ignore"):
        precision = kept**2 / beta + 1 / (1 - before)
        from_x0 = np.where(before == 1, 1, np.sqrt(before) / np.maximum(1 - before, 1e-300) / precision)
    return from_x0, kept / beta / precision, 1 / precision, beta


@pytest.mark.parametrize("respacing", RESPACINGS)
@every_schedule
def test_the_posterior_is_bayes_rule(schedule: str, respacing: str) -> None:
    process = DDPM(schedule=schedule, respacing=respacing)
    from_x0, from_x, variance, beta = bayes(process)
    np.testing.assert_allclose(process.posterior.from_x0, from_x0, rtol=1e-6)
    np.testing.assert_allclose(process.posterior.from_x, from_x, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(np.exp(process.posterior.log_small)[1:], variance[1:], rtol=1e-6)
    np.testing.assert_allclose(np.exp(process.posterior.log_beta), beta, rtol=1e-6)
    assert variance[0] == 0 and process.posterior.log_small[0] == process.posterior.log_small[1]


def test_a_process_of_one_step_has_a_posterior() -> None:
    posterior = DDPM(respacing="1").posterior
    np.testing.assert_allclose([posterior.from_x0, posterior.from_x], [[1], [0]], atol=1e-12)
    np.testing.assert_allclose(posterior.log_small, posterior.log_beta)


def step_of(process: DDPM, variance: Any = None) -> tuple[np.ndarray, np.ndarray]:
    """Mean and log-variance of the model's steps from every visited one; image, noise and x_t are all 1, 2, 3."""
    n = len(process.visited)
    one = jnp.ones((n, 1, 1, 1))
    spoken = Prediction(one, 2 * one, None if variance is None else variance * one)
    mean, log_variance = jax.jit(process.p_moments)(spoken, 3 * one, jnp.arange(n))
    return np.ravel(mean), np.ravel(log_variance)


def test_the_models_step_is_the_posterior_with_the_variance_that_is_named() -> None:
    small, large = (DDPM(variance=f"fixed_{size}", respacing="20") for size in ("small", "large"))
    table = small.posterior
    mean, log_variance = step_of(small)
    np.testing.assert_allclose(mean, table.from_x0 + 3 * table.from_x)
    np.testing.assert_allclose(log_variance, table.log_small)
    # The first step back to the data would be drawn with beta; the posterior's variance there is 0.
    np.testing.assert_allclose(step_of(large)[1], np.append(table.log_small[0], table.log_beta[1:]))


def test_a_learned_variance_lies_between_the_two_in_the_logarithm() -> None:
    process = DDPM(variance="learned_range", respacing="20")
    table = process.posterior
    np.testing.assert_allclose(step_of(process, 0.0)[1], table.log_small)
    np.testing.assert_allclose(step_of(process, 1.0)[1], table.log_beta)
    np.testing.assert_allclose(step_of(process, 0.3)[1], 0.7 * table.log_small + 0.3 * table.log_beta)
    output = jnp.stack([jnp.full((2, 1, 1), 7.0), jnp.asarray([-1.0, 1.0]).reshape(2, 1, 1)], axis=-1)
    said = process.interpret(output, jnp.ones((2, 1, 1, 1)), jnp.full(2, 0.5))
    np.testing.assert_array_equal(np.ravel(said.eps), [7, 7])
    assert said.variance is not None
    np.testing.assert_array_equal(np.ravel(said.variance), [0, 1])


@pytest.mark.parametrize("share", [-0.4, 0.3, 1.4])
def test_on_the_step_to_the_data_no_learned_variance_is_left(share: float) -> None:
    said = Prediction(jnp.zeros(1), jnp.zeros(1), jnp.full(1, share))
    found = DDPM(variance="learned_range").step_variance(said, jnp.zeros(()), jnp.full((), 1e-4))
    np.testing.assert_array_equal(found, [0.0])


def test_the_variance_of_a_samplers_step_is_the_one_that_is_named() -> None:
    small, large = jnp.asarray(0.01), jnp.asarray(0.04)
    silent = Prediction(jnp.ones(1), jnp.ones(1))
    assert DDPM(variance="fixed_small").step_variance(silent, small, large) == small
    assert DDPM(variance="fixed_large").step_variance(silent, small, large) == large
    learned = DDPM(variance="learned_range")
    for share, expected in ((0.0, 0.01), (1.0, 0.04), (0.5, 0.02)):
        said = silent._replace(variance=jnp.full(1, share))
        np.testing.assert_allclose(learned.step_variance(said, small, large), expected, rtol=1e-6)


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
    x, said = jnp.full((1, 1, 1, 1), 0.2), Prediction(jnp.full((1, 1, 1, 1), 0.201), jnp.zeros((1, 1, 1, 1)))
    for name, function in (("exact", discretized_log_likelihood), ("adm", adm_log_likelihood)):
        process = DDPM(likelihood=name)
        bound = jax.jit(process.bound)(said, x, x, jnp.zeros(1, int))
        expected = -function(x, said.x0, process.posterior.log_small[0] / 2) / np.log(2)
        np.testing.assert_allclose(bound, np.ravel(expected), rtol=1e-9)


def rounded(x: Any) -> np.ndarray:
    """To the grey levels."""
    return np.round((np.clip(x, -1, 1) + 1) * 127.5) / 127.5 - 1


@pytest.mark.parametrize(("variance", "respacing"), [("fixed_small", ""), ("fixed_large", "8"), ("learned_range", "8")])
def test_the_bound_of_the_network_that_knows_the_image_is_a_closed_form(variance: str, respacing: str) -> None:
    process = DDPM(variance=variance, respacing=respacing, steps=40, beta_end=0.2)
    x0 = rounded(X0[:3])

    def model_fn(x: jax.Array, t: jax.Array, y: Any) -> jax.Array:
        output = knows(process, x0)(x, t, y)
        return output.at[..., 2:].set(0.2)  # 0.6 of the way between the two variances, where it is learned

    bits = jax.jit(lambda x0: process.bits_per_dim(jax.random.key(0), model_fn, x0, Y[:3]))
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

    def model_fn(x: jax.Array, t: jax.Array, y: Any) -> jax.Array:
        output = oracles.network(process, data)(x, t, y)
        v = expand(jnp.asarray(2 * share - 1, x.dtype)[jnp.searchsorted(jnp.asarray(process.visited), t)], x)
        return output.at[..., 1:].set(jnp.broadcast_to(v, x.shape))

    return model_fn


@pytest.mark.parametrize("respacing", ["", "6"])
def test_the_bound_of_the_perfect_network_is_the_code_length_of_the_images(respacing: str) -> None:
    """However few the steps, as the steps back through normal data are normal; any other variance is worse."""
    process = DDPM(steps=20, beta_end=0.9, variance="learned_range", respacing=respacing)
    x0 = rounded(0.3 * np.random.default_rng(0).normal(size=(256, 4, 4, 1)))
    bits = jax.jit(lambda key, x0: process.bits_per_dim(key, perfect_step(process, 0.3), x0, None)[0])
    total = bits(jax.random.key(0), jnp.asarray(x0))
    length = -scipy.stats.norm.logpdf(x0, 0, 0.3).mean(axis=(1, 2, 3)) / np.log(2) + np.log2(255 / 2)
    assert within_error(np.asarray(total) - length, 0.0)
    assert np.std(np.asarray(total) - length) < 0.4


def errors(process: DDPM, output: Any, t: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss of a network's answer to 64 noised images."""
    x0, eps = jnp.asarray(X0), jnp.asarray(np.random.default_rng(2).normal(size=X0.shape))
    return jax.jit(process.error)(jnp.asarray(output), x0, eps, process.noised(x0, eps, t), t)


def test_the_bound_trains_the_variance_alone_and_the_square_error_the_rest() -> None:
    output = np.random.default_rng(1).normal(size=(64, 2, 3, 4))
    t = jnp.arange(1, 65) / 100

    def slope(bound_weight: float) -> Any:
        process = DDPM(steps=100, variance="learned_range", bound_weight=bound_weight)
        return jax.jit(jax.grad(lambda o: jnp.sum(errors(process, o, t)[0])))(jnp.asarray(output))

    without, with_bound = slope(0.0), slope(0.001)
    assert np.all(without[..., 2:] == 0) and np.all(without[..., :2] != 0)
    np.testing.assert_array_equal(with_bound[..., :2], without[..., :2])
    assert np.all(with_bound[..., 2:] != 0)


@pytest.mark.parametrize(("respacing", "n"), [("", 100), ("25", 25)])
def test_the_bound_is_added_with_its_weight_times_the_number_of_steps(respacing: str, n: int) -> None:
    output = np.random.default_rng(1).normal(size=(64, 2, 3, 4))
    fields: dict[str, Any] = {"steps": 100, "variance": "learned_range", "respacing": respacing}
    process = DDPM(**fields)
    assert len(process.visited) == n
    t = jnp.asarray((process.visited[np.arange(64) % n] + 1) / 100)
    losses, aux = errors(process, output, t)
    simple, _ = errors(DDPM(**fields, bound_weight=0.0), output, t)
    np.testing.assert_allclose(losses, simple + 0.001 * n * aux["bound"], rtol=1e-9)
    np.testing.assert_array_equal(aux["index"], np.arange(64) % n)
    x = process.noised(X0, np.random.default_rng(2).normal(size=X0.shape), t)
    said = process.interpret(jnp.asarray(output), x, t)
    np.testing.assert_allclose(aux["bound"], process.bound(said, jnp.asarray(X0), x, aux["index"]), rtol=1e-9)


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_min_snr_weighs_the_same_error_of_the_image_the_same_whatever_is_learned(prediction: str) -> None:
    """min(SNR, gamma) of the square error in x0 (Hang et al. 2023)."""
    process = DDPM(prediction=prediction, weighting="min_snr", min_snr_gamma=3.0)
    t = jnp.arange(1, 65) / 65
    t = jnp.round(t * 1000) / 1000
    x = process.noised(X0, np.random.default_rng(2).normal(size=X0.shape), t)
    wrong = X0 + np.random.default_rng(3).normal(size=X0.shape)
    alpha, sigma = (expand(f(t), x) for f in (process.alpha, process.sigma))
    losses, _ = errors(process, process.target(wrong, (x - alpha * wrong) / sigma, t), t)
    snr = np.ravel(alpha**2 / sigma**2)
    assert snr.min() < 3 < snr.max()
    np.testing.assert_allclose(losses, np.minimum(snr, 3) * np.mean((wrong - X0) ** 2, axis=(1, 2, 3)), rtol=1e-9)


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_without_weighting_the_square_error_counts_as_it_is(prediction: str) -> None:
    process = DDPM(prediction=prediction)
    t = jnp.arange(1, 65) / 1000
    target = process.target(jnp.asarray(X0), np.random.default_rng(2).normal(size=X0.shape), t)
    np.testing.assert_allclose(errors(process, target + 2, t)[0], 4, rtol=1e-5)


def remembered(process: DDPM) -> Any:
    """A memory in which the loss falls with the index."""
    memory, n = process.init_memory(), len(process.visited)
    index = jnp.tile(jnp.arange(n), 10)
    return jax.jit(process.remember)(memory, {"index": index, "raw": 5.0 / (1 + index)})


@pytest.mark.parametrize("respacing", ["", "13"])
def test_times_drawn_by_their_losses_are_weighted_back_to_uniform(respacing: str) -> None:
    process = DDPM(steps=50, time_sampling="loss_second_moment", respacing=respacing)
    n = len(process.visited)
    draw = jax.jit(lambda key, memory: process.sample_times(key, 20000, memory))
    t, weights = draw(jax.random.key(0), remembered(process))
    index = np.searchsorted(process.visited, np.round(np.asarray(t) * 50).astype(int) - 1)
    p = 0.999 / (1 + np.arange(n)) / np.sum(1 / (1 + np.arange(n))) + 0.001 / n
    assert scipy.stats.chisquare(np.bincount(index, minlength=n), 20000 * p).pvalue > 1e-3
    np.testing.assert_allclose(weights, 1 / (n * p[index]), rtol=1e-4)
    for function in (np.cos(np.arange(n)), np.arange(n) / n, np.ones(n)):
        assert within_error(np.asarray(weights) * function[index], function.mean())


def test_a_memory_that_is_not_full_draws_all_times_alike() -> None:
    process = DDPM(steps=50, time_sampling="loss_second_moment")
    memory = process.remember(process.init_memory(), {"index": jnp.arange(50), "raw": jnp.arange(50.0)})
    t, weights = jax.jit(lambda key: process.sample_times(key, 20000, memory))(jax.random.key(0))
    assert scipy.stats.chisquare(np.bincount(np.round(np.asarray(t) * 50).astype(int) - 1)).pvalue > 1e-3
    np.testing.assert_allclose(weights, 1, rtol=1e-5)


def test_the_expected_loss_does_not_depend_on_how_times_are_drawn() -> None:
    """A silent network that learns x0 sees a loss of x0^2 at every time; one that says x_t, one that changes."""
    x0: Any = np.linspace(-1, 1, 20000).reshape(-1, 1, 1, 1)
    y = np.zeros(20000, np.int32)
    fields: dict[str, Any] = {"steps": 50, "beta_end": 0.3, "prediction": "x0"}
    process = DDPM(**fields, time_sampling="loss_second_moment")

    def echo(x: jax.Array, t: jax.Array, y: Any) -> jax.Array:
        return x

    loss = jax.jit(lambda key, memory: process.loss(key, echo, x0, y, NULL, memory))
    losses, aux = loss(jax.random.key(0), remembered(process))
    assert np.ptp(losses / aux["raw"]) > 1
    a, s = (f(np.arange(1, 51) / 50) for f in (process.alpha, process.sigma))
    assert within_error(losses, np.mean((a - 1) ** 2 * np.mean(x0**2) + s**2))
    few = {name: values[:300] for name, values in aux.items()}
    memory = process.remember(process.init_memory(), few)
    np.testing.assert_array_equal(memory.written, np.bincount(few["index"], minlength=50))
    last = dict(zip(np.asarray(few["index"]), np.asarray(few["raw"]), strict=True))
    assert all(loss in np.asarray(memory.losses)[i] for i, loss in last.items())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("schedule", "quadratic"),
        ("prediction", "velocity"),
        ("variance", "learned"),
        ("likelihood", "tanh"),
        ("time_sampling", "importance"),
        ("weighting", "snr"),
        ("steps", 0),
        ("steps", -3),
        ("beta_start", -0.1),
        ("beta_start", 1.0),
        ("beta_end", 1.0),
        ("beta_end", float("nan")),
        ("bound_weight", -1.0),
        ("bound_weight", float("inf")),
        ("min_snr_gamma", 0.0),
        ("respacing", "many"),
        ("respacing", "1001"),
        ("respacing", "ddim999"),
        ("condition_dropout", 1.1),
    ],
)
def test_a_field_out_of_range_is_named_with_its_value(field: str, value: Any) -> None:
    with pytest.raises(UserError, match=rf"config\.process\.{field}: .*{value}"):
        registry.build(processes, "process", "ddpm", {field: value})
