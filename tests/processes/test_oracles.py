"""The perfect networks: posterior means by integration, scores by Tweedie, the same from every process."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from archirf_jax.processes.base import Process, ask
from archirf_jax.processes.ddpm import DDPM
from archirf_jax.processes.edm import EDM
from archirf_jax.processes.oracles import Mixture, gaussian, network
from archirf_jax.processes.rectified_flow import RectifiedFlow
from tests.processes.examples import every_learner, within_error

pytestmark = pytest.mark.usefixtures("float64")
RANDOM = np.random.default_rng(0)
# One pixel, three components; and images, one of whose components is a single image.
PIXEL = Mixture(np.array([-0.8, 0.1, 0.9]).reshape(3, 1, 1, 1), np.array([0.1, 0.3, 0.05]), np.array([0.3, 0.5, 0.2]))
IMAGES = Mixture(RANDOM.uniform(-1, 1, (3, 2, 3, 2)), np.array([0.0, 0.4, 0.2]), np.array([0.2, 0.5, 0.3]))
# x_t, alpha and sigma.
PLACES = [(x, *shares) for x in (-1.5, -0.2, 0.4, 2.0) for shares in ((1.0, 0.1), (0.7, 0.5), (0.1, 1.0), (1.0, 3.0))]


def prior(x0: float) -> float:
    """The density of PIXEL."""
    return float(np.sum(PIXEL.weights * scipy.stats.norm.pdf(x0, PIXEL.means.ravel(), PIXEL.stds)))


def integral(function: Any) -> float:
    """Over all image pixels there are."""
    return scipy.integrate.quad(function, -4, 4, points=[-0.8, 0.1, 0.9, 1.8], epsabs=0, limit=500)[0]


def test_the_denoised_pixel_is_the_posterior_mean() -> None:
    x, alpha, sigma = (jnp.asarray(column) for column in np.asarray(PLACES).T)
    denoised, log_prob = (
        np.ravel(jax.jit(function)(x.reshape(-1, 1, 1, 1), alpha, sigma))
        for function in (PIXEL.denoise, PIXEL.log_prob)
    )
    for i, place in enumerate(PLACES):

        def joint(x0: float, place: tuple[float, float, float] = place) -> float:
            return prior(x0) * scipy.stats.norm.pdf(place[0], place[1] * x0, place[2])

        evidence = integral(joint)
        assert denoised[i] == pytest.approx(integral(lambda x0: x0 * joint(x0)) / evidence, rel=1e-6), place
        assert log_prob[i] == pytest.approx(np.log(evidence), rel=1e-6), place


@pytest.mark.parametrize(("alpha", "sigma"), [(1.0, 0.1), (0.5, 0.8)])
def test_the_density_adds_up_to_one(alpha: float, sigma: float) -> None:
    x = np.linspace(-6, 6, 4001)
    log_prob = jax.jit(PIXEL.log_prob)(
        jnp.asarray(x).reshape(-1, 1, 1, 1), *(jnp.full(4001, v) for v in (alpha, sigma))
    )
    assert scipy.integrate.simpson(np.exp(log_prob), x=x) == pytest.approx(1, abs=1e-9)


def scattered() -> tuple[jax.Array, jax.Array, jax.Array]:
    """64 images among those of IMAGES, and alpha and sigma of each."""
    random = np.random.default_rng(1)
    alpha, sigma = random.uniform(0.1, 1, 64), random.uniform(0.2, 2, 64)
    return jnp.asarray(random.normal(size=(64, 2, 3, 2))), jnp.asarray(alpha), jnp.asarray(sigma)


def test_the_density_of_images_is_the_product_over_pixels() -> None:
    x, alpha, sigma = scattered()
    a, s = (np.asarray(values)[:, None, None, None, None] for values in (alpha, sigma))
    std = np.sqrt(a**2 * IMAGES.stds[:, None, None, None] ** 2 + s**2)
    pixels = scipy.stats.norm.pdf(np.asarray(x)[:, None], a * IMAGES.means, std)
    expected = np.log(pixels.prod(axis=(2, 3, 4)) @ IMAGES.weights)
    np.testing.assert_allclose(jax.jit(IMAGES.log_prob)(x, alpha, sigma), expected, rtol=1e-9)


def test_the_denoiser_is_the_gradient_of_the_log_density() -> None:
    """Tweedie: score = (alpha E[x0 | x] - x) / sigma^2."""
    x, alpha, sigma = scattered()
    score = jax.jit(jax.grad(lambda x: jnp.sum(IMAGES.log_prob(x, alpha, sigma))))(x)
    a, s = (values[:, None, None, None] for values in (alpha, sigma))
    np.testing.assert_allclose((a * IMAGES.denoise(x, alpha, sigma) - x) / s**2, score, rtol=1e-9, atol=1e-12)


def test_the_classifier_is_bayes_rule() -> None:
    x, alpha, sigma = scattered()
    log_posterior = np.asarray(jax.jit(IMAGES.log_posterior)(x, alpha, sigma))
    np.testing.assert_allclose(np.exp(log_posterior).sum(axis=1), 1, rtol=1e-12)
    evidence = IMAGES.log_prob(x, alpha, sigma)
    for k in range(3):
        alone = Mixture(IMAGES.means[k : k + 1], IMAGES.stds[k : k + 1], np.ones(1))
        joint = np.log(IMAGES.weights[k]) + alone.log_prob(x, alpha, sigma)
        np.testing.assert_allclose(log_posterior[:, k], joint - evidence, rtol=1e-9, atol=1e-12)


def test_draws_follow_the_mixture() -> None:
    draws = np.ravel(PIXEL.sample(jax.random.key(0), 4000))

    def distribution(x: Any) -> Any:
        return scipy.stats.norm.cdf(np.asarray(x)[..., None], PIXEL.means.ravel(), PIXEL.stds) @ PIXEL.weights

    assert scipy.stats.kstest(draws, distribution).pvalue > 1e-3
    images = np.asarray(IMAGES.sample(jax.random.key(0), 4000))
    assert images.shape == (4000, 2, 3, 2)
    exact = np.all(images == IMAGES.means[0], axis=(1, 2, 3))  # the component without deviation
    assert scipy.stats.binomtest(int(exact.sum()), 4000, 0.2).pvalue > 1e-3
    for place in np.ndindex(2, 3, 2):
        assert within_error(images[:, *place], IMAGES.weights @ IMAGES.means[:, *place])


def test_one_normal_distribution_is_a_mixture_of_one() -> None:
    data = gaussian(0.5, 0.3, (2, 3, 2))
    assert data.means.shape == (1, 2, 3, 2) and np.all(data.means == 0.5)
    x, alpha, sigma = scattered()
    a, s = (np.asarray(values)[:, None, None, None] for values in (alpha, sigma))
    expected = 0.5 + a * 0.09 / (a**2 * 0.09 + s**2) * (x - a * 0.5)
    np.testing.assert_allclose(data.denoise(x, alpha, sigma), expected, rtol=1e-9)


@every_learner
def test_the_perfect_network_of_any_process_predicts_the_denoised_image(process: Process) -> None:
    x, _, _ = scattered()
    t = jnp.linspace(0.05, 0.95, 64)
    prediction = process.interpret(ask(process, network(process, IMAGES), x, t, {})[0], x, t)
    alpha, sigma = process.alpha(t), process.sigma(t)
    x0 = IMAGES.denoise(x, alpha, sigma)
    np.testing.assert_allclose(prediction.x0, x0, atol=1e-8)
    np.testing.assert_allclose(process.noised(prediction.x0, prediction.eps, t), x, atol=1e-8)


def test_the_perfect_network_learns_the_posteriors_variance() -> None:
    x, _, _ = scattered()
    t, process = jnp.linspace(0.05, 0.95, 64), DDPM(variance="learned_range")
    output, extras = ask(process, network(process, IMAGES), x, t, {})
    assert output.shape == (64, 2, 3, 4) and not extras
    assert np.all(process.interpret(output, x, t).variance == 0)


@pytest.mark.parametrize("process", [RectifiedFlow(), DDPM(prediction="x0"), EDM()], ids=["flow", "ddpm", "edm"])
def test_no_network_loses_less_than_the_perfect_one(process: Process) -> None:
    """Its error is that of the posterior mean, so a constant added anywhere adds its square."""
    x0 = PIXEL.sample(jax.random.key(1), 4000)
    t, eps = jax.random.uniform(jax.random.key(2), (4000,), minval=0.05), jax.random.normal(jax.random.key(3), x0.shape)

    @jax.jit
    def loss(offset: jax.Array) -> jax.Array:
        answer, _ = ask(process, network(process, PIXEL), process.noised(x0, eps, t), t, {})
        return jnp.square(answer + offset - process.target(x0, eps, t)).ravel()

    for offset in (-0.3, 0.2):
        assert within_error(loss(offset) - loss(0.0), offset**2)


@pytest.mark.parametrize("shape", [(), (4, 3)])
def test_data_may_have_any_rank_and_each_example_its_own_mixture(shape: tuple[int, ...]) -> None:
    random = np.random.default_rng(2)
    x, alpha, sigma = random.normal(size=(6, *shape)), np.full(6, 0.6), np.full(6, 0.7)
    one = Mixture(random.normal(size=(2, *shape)), np.asarray([0.3, 0.5]), np.asarray([0.4, 0.6]))
    many = Mixture(*(np.broadcast_to(leaf, (6, *leaf.shape)) for leaf in (one.means, one.stds, one.weights)))
    flat = Mixture(one.means.reshape(2, 1, -1, 1), one.stds, one.weights)
    arrays = tuple(map(jnp.asarray, (x, alpha, sigma)))
    for name in ("denoise", "log_prob", "log_posterior"):
        expected = getattr(flat, name)(arrays[0].reshape(6, 1, -1, 1), *arrays[1:])
        for data in (one, many):
            found = getattr(data, name)(*arrays)
            np.testing.assert_allclose(np.ravel(found), np.ravel(expected), rtol=1e-9, atol=1e-12)
