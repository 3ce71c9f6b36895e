"""Denoisers: what wrappers change and leave, Bayes' rule for classifiers, and held pixels.

Whatever a wrapper does to x0, eps must follow: x = alpha x0 + sigma eps.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archirf_jax.contracts import Denoiser
from archirf_jax.processes.base import Process
from archirf_jax.processes.ddpm import DDPM, VARIANCES
from archirf_jax.processes.edm import EDM
from archirf_jax.processes.oracles import gaussian
from archirf_jax.processes.rectified_flow import RectifiedFlow
from archirf_jax.samplers import denoisers
from archirf_jax.samplers.denoisers import ClassifierGuidance, Inpaint, NetworkDenoiser
from archirf_jax.samplers.solvers.ddim import Ddim
from archirf_jax.samplers.solvers.ddpm import Ddpm
from archirf_jax.samplers.solvers.dpmpp_2m import DpmSolver
from archirf_jax.samplers.solvers.edm import Edm
from archirf_jax.samplers.solvers.euler import Euler
from archirf_jax.samplers.solvers.euler_maruyama import EulerMaruyama
from archirf_jax.samplers.solvers.heun import Heun
from archirf_jax.samplers.solvers.midpoint import Midpoint
from tests.samplers import exact

FLOW, LEARNED, NOISING = RectifiedFlow(), DDPM(variance="learned_range"), EDM()
RANDOM = np.random.default_rng(0)  # of what is drawn below, not in tests, whose order may change
U, Z = RANDOM.normal(size=(4, 2)), RANDOM.normal(size=(4, 4, 2))
B = 3
Y = np.asarray([1, 2, 3], np.int32)
T: Any = np.asarray([0.3, 0.6, 0.9])
X: Any = RANDOM.normal(size=(B, 4, 5, 2))


@pytest.fixture(autouse=True)
def double_precision() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def restless(process: Process) -> NetworkDenoiser:
    """A network without meaning, which depends on x and the label."""

    def model_fn(x: jax.Array, t: jax.Array, y: Any) -> jax.Array:
        y = y.reshape(-1, *[1] * (x.ndim - 1))
        answer = jnp.sin(2 * x + y) * (1 + y)
        more = process.output_channels(x.shape[-1]) - x.shape[-1]
        return jnp.concatenate([answer, 0.5 * jnp.cos(answer[..., :more])], axis=-1)

    return NetworkDenoiser(process, exact.answers(model_fn))


def ask(denoise: Denoiser, x: Any = X, t: Any = T, y: Any = Y) -> Any:
    x, t = jnp.asarray(x), jnp.asarray(t)
    return jax.tree.map(np.asarray, denoise(x, t, {"label": y}, denoise.init(x))[0])


def assert_explains(prediction: Any, process: Process, x: Any = X, t: Any = T) -> None:
    alpha, sigma = (np.asarray(part(t))[:, None, None, None] for part in (process.alpha, process.sigma))
    np.testing.assert_allclose(alpha * prediction.x0 + sigma * prediction.eps, x, atol=1e-9)


def test_a_time_for_all_is_the_same_as_one_each() -> None:
    plain = restless(FLOW)
    for denoise in (plain, denoisers.StaticClip(plain)):
        for one, each in zip(ask(denoise, t=0.3)[:2], ask(denoise, t=np.full(B, 0.3))[:2], strict=True):
            np.testing.assert_array_equal(one, each)


# --- thresholds

THRESHOLDS = [denoisers.StaticClip, denoisers.DynamicThreshold]


@pytest.mark.parametrize("process", [FLOW, LEARNED, NOISING])
@pytest.mark.parametrize("make", THRESHOLDS)
def test_a_threshold_moves_the_noise_with_the_image_unless_it_keeps_eps(process: Process, make: Any) -> None:
    inner = restless(process)
    plain, cut, kept = ask(inner), ask(make(inner)), ask(make(inner, keep_eps=True))
    assert np.max(np.abs(plain.x0)) > 1.2 and np.max(np.abs(cut.x0)) <= 1
    assert_explains(plain, process)
    assert_explains(cut, process)
    np.testing.assert_array_equal(kept.x0, cut.x0)
    np.testing.assert_array_equal(kept.eps, plain.eps)
    if process is LEARNED:
        np.testing.assert_array_equal(cut.variance, plain.variance)


def answers(x0: np.ndarray) -> NetworkDenoiser:
    """The network that answers this x0 to everything."""
    return NetworkDenoiser(RectifiedFlow(prediction="x0"), exact.answers(lambda x, t, y: jnp.asarray(x0)))


@pytest.mark.parametrize("limit", [1.0, 0.5])
def test_a_static_threshold_cuts_at_its_limit(limit: float) -> None:
    np.testing.assert_array_equal(ask(denoisers.StaticClip(answers(3 * X), limit)).x0, np.clip(3 * X, -limit, limit))


@pytest.mark.parametrize(("quantile", "largest"), [(0.5, float("inf")), (0.9, 1.5), (0.995, float("inf")), (1.0, 1.5)])
def test_a_dynamic_threshold_is_the_quantile_of_each_image_where_that_is_beyond_1(
    quantile: float, largest: float
) -> None:
    images = np.stack([5 * X[0], X[1], 0.2 * X[2]])
    found = ask(denoisers.DynamicThreshold(answers(images), quantile, largest)).x0
    for image, cut in zip(images, found, strict=True):
        s = np.clip(np.quantile(np.abs(image), quantile), 1, largest)
        np.testing.assert_allclose(cut, np.clip(image, -s, s) / s, atol=1e-12)
    np.testing.assert_array_equal(found[2], images[2])


@pytest.mark.parametrize("wrap", [*THRESHOLDS, lambda inner: Inpaint(inner, 0.3 * X[0], np.ones((4, 5, 1)) * 0)])
def test_at_the_data_itself_the_noise_stays_as_it_was_predicted(wrap: Any) -> None:
    """The grid 'archirf' asks there, where nothing of x is noise."""
    inner = restless(FLOW)
    plain, changed = ask(inner, t=0.0), ask(wrap(inner), t=0.0)
    assert np.max(np.abs(changed.x0 - plain.x0)) > 0.1
    np.testing.assert_array_equal(changed.eps, plain.eps)


# --- classifiers


def classifier(process: Process) -> Any:
    """The perfect one: log p(y | x_t) for the two normal distributions of `exact`."""

    def log_p(x: jax.Array, t: jax.Array, condition: Any) -> jax.Array:
        log_posterior = exact.DATA.log_posterior(x, process.alpha(t), process.sigma(t))
        return jnp.take_along_axis(log_posterior, condition["label"][:, None], 1)[:, 0]

    return log_p


def of_class(x: np.ndarray, y: int, alpha: Any, sigma: Any) -> np.ndarray:
    """E[x0 | x, y] for x (B, 2)."""
    mean, variance = exact.MEANS[y], exact.STDS[y] ** 2
    return mean + alpha * variance / (alpha**2 * variance + sigma**2) * (x - alpha * mean)


def gradient(x: np.ndarray, y: int, alpha: Any, sigma: Any) -> np.ndarray:
    """The gradient of log p(y | x): the score of the class less the score of all; for x (B, 2) at one time."""
    score = -(x - alpha * exact.MEANS[y]) / (alpha**2 * exact.STDS[y] ** 2 + sigma**2)
    return score + exact.denoise(x, alpha, sigma)[1] / sigma


@pytest.mark.parametrize(("process", "y"), [*zip(exact.PROCESSES.values(), (0, 1, 0, 1, 0), strict=True)])
def test_the_perfect_classifier_turns_the_denoiser_of_all_into_that_of_the_class(process: Process, y: int) -> None:
    """Bayes: grad log p(x | y) = grad log p(x) + grad log p(y | x)."""
    t = np.asarray([0.05, 0.3, 0.6, 0.95])
    alpha, sigma = process.alpha(t)[:, None], process.sigma(t)[:, None]
    x = (alpha + sigma) * U
    guided = ClassifierGuidance(exact.perfect(process), classifier(process))
    found = ask(guided, x.reshape(4, *exact.SHAPE), t, np.full(4, y))
    expected = of_class(x, y, alpha, sigma)
    np.testing.assert_allclose(found.x0.reshape(4, 2), expected, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(found.eps.reshape(4, 2), (x - alpha * expected) / sigma, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("scale", [-1.0, 0.0, 2.0])
def test_a_classifier_pulls_by_its_scale_towards_its_class(scale: float) -> None:
    t, x = 0.6, U
    plain = exact.perfect(FLOW)
    guided = ClassifierGuidance(plain, classifier(FLOW), scale)
    before, after = (
        ask(denoise, x.reshape(4, *exact.SHAPE), np.full(4, t), np.zeros(4, int)) for denoise in (plain, guided)
    )
    moved = (after.x0 - before.x0).reshape(4, 2)
    np.testing.assert_allclose(moved, scale * t**2 / (1 - t) * gradient(x, 0, 1 - t, t), atol=1e-9)
    sure, surer = (exact.log_posterior(p.x0.reshape(4, 2), 1.0, 0.0)[:, 0] for p in (before, after))
    assert np.all(np.sign(surer - sure) == np.sign(scale))


@pytest.mark.parametrize("process", [FLOW, RectifiedFlow(path="gvp", prediction="x0")])
def test_in_noise_alone_a_classifier_leads_to_the_mean_of_its_class(process: Process) -> None:
    """The limit of sigma^2 / alpha of a gradient that vanishes with alpha."""
    guided = ClassifierGuidance(exact.perfect(process), classifier(process))
    found = ask(guided, U.reshape(4, *exact.SHAPE), np.ones(4), np.asarray([0, 1, 0, 1]))
    expected = exact.MEANS[[0, 1, 0, 1]]
    np.testing.assert_allclose(found.x0.reshape(4, 2), expected, atol=5e-3)
    np.testing.assert_allclose(found.eps.reshape(4, 2), U, atol=1e-12)


def test_where_next_to_nothing_of_the_image_is_left_a_classifier_is_still_exact() -> None:
    """The cosine schedule ends at sigma / alpha = 20,000, which is not pure noise."""
    process, t = DDPM(schedule="cosine"), np.ones(4)
    alpha, sigma = process.alpha(t)[:, None], process.sigma(t)[:, None]
    guided = ClassifierGuidance(exact.perfect(process), classifier(process))
    found = ask(guided, U.reshape(4, *exact.SHAPE), t, np.zeros(4, int))
    np.testing.assert_allclose(found.x0.reshape(4, 2), of_class(U, 0, alpha, sigma), atol=1e-6)


@pytest.mark.parametrize("solver", [Heun(), DpmSolver()])
def test_guided_by_a_classifier_from_pure_noise_a_solver_keeps_its_order(solver: Any) -> None:
    """On the way to one class it goes where the network of that class would lead it."""
    of_one = gaussian(exact.MEANS[0].reshape(exact.SHAPE), float(exact.STDS[0]), exact.SHAPE)
    alone = exact.perfect(FLOW, of_one)
    guided = ClassifierGuidance(exact.perfect(FLOW), classifier(FLOW))
    grid = exact.grid("uniform", FLOW, 12)
    ends = [exact.walk(solver, denoise, grid, U) for denoise in (guided, alone)]
    np.testing.assert_allclose(*ends, atol=2e-3)


@pytest.mark.parametrize("variance", VARIANCES)
def test_ancestral_sampling_with_a_classifier_ends_at_finite_images(variance: str) -> None:
    """Also where a learned variance leaves the range between its two bounds."""
    process = DDPM(variance=variance)

    @exact.answers
    def beyond(x: jax.Array, t: jax.Array, y: Any) -> jax.Array:
        return jnp.concatenate([0.1 * x, jnp.full((*x.shape[:-1], process.output_channels(1) - 1), 1.6)], axis=-1)

    grid = exact.grid("trailing", process, 4)
    end = exact.walk(Ddpm(classifier(process), 3.0), NetworkDenoiser(process, beyond), grid, U, Z)
    assert np.all(np.isfinite(end))


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_ancestral_sampling_moves_its_mean_by_the_variance_times_the_gradient(variance: str) -> None:
    """Dhariwal & Nichol 2021, Algorithm 1; with the step's own noise unchanged."""
    process, scale = DDPM(variance=variance), 3.0
    abar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    beta = 1 - abar[400] / abar[300]
    size = beta if variance == "fixed_large" else beta * (1 - abar[300]) / (1 - abar[400])
    plain, grid = exact.perfect(process), np.asarray([[0.401, 0.301]])
    ends = [exact.walk(s, plain, grid, U, Z[:1]) for s in (Ddpm(), Ddpm(classifier(process), scale))]
    alpha, sigma = np.sqrt(abar[400]), np.sqrt(1 - abar[400])
    np.testing.assert_allclose(ends[1] - ends[0], scale * size * gradient(U, 0, alpha, sigma), rtol=1e-8)


# --- held pixels

KNOWN = np.asarray([0.37, 99.0]).reshape(exact.SHAPE)
MASK = np.asarray([0.0, 1.0]).reshape(exact.SHAPE)  # the second pixel is to be made
SOLVERS = {
    "euler": Euler(),
    "ddim": Ddim(),
    "ddim_noisy": Ddim(eta=1.0),
    "ddpm": Ddpm(),
    "euler_maruyama": EulerMaruyama(),
    "heun": Heun(),
    "midpoint": Midpoint(),
    "dpmpp_2m": DpmSolver(),
    "edm": Edm(),
    "edm_noisy": Edm(churn=3.0),
}
WAYS = [
    *((name, "linear") for name in SOLVERS),
    *((name, "edm") for name in ("ddpm", "heun", "edm_noisy")),
    *((name, "gvp") for name in ("ddim_noisy", "dpmpp_2m")),
    *((name, "ddpm") for name in ("euler", "ddpm")),
]


@pytest.mark.parametrize(("name", "key"), WAYS)
def test_known_pixels_end_at_their_values_and_leave_the_others_alone(name: str, key: str) -> None:
    """Where the network treats each pixel apart, the others go their own way."""
    process, solver = exact.PROCESSES[key], SOLVERS[name]
    grid = exact.grid("karras" if name.startswith("edm") else "uniform", process, 4)
    plain = exact.perfect(process, gaussian(0.2, 0.5, exact.SHAPE))
    x = float(process.sigma(grid[0, 0])) * U
    free, held = (exact.walk(solver, d, grid, x, Z) for d in (plain, Inpaint(plain, KNOWN, MASK)))
    np.testing.assert_allclose(held[:, 0], 0.37, atol=1e-9)
    np.testing.assert_allclose(held[:, 1], free[:, 1], atol=1e-9)
    assert np.min(np.abs(free[:, 0] - 0.37)) > 1e-3


def test_each_example_may_have_its_own_known_pixels() -> None:
    random = np.random.default_rng(1)
    known, mask = random.normal(size=X.shape), 1.0 * random.integers(0, 2, size=(4, 5, 1))
    plain = restless(NOISING)
    found = ask(Inpaint(plain, known, mask))
    np.testing.assert_array_equal(found.x0, np.where(mask == 1, ask(plain).x0, known))
    assert_explains(found, NOISING)


@pytest.mark.parametrize("shape", [(5,), (2, 3, 2, 4)])
def test_wrappers_take_data_of_any_rank(shape: tuple[int, ...]) -> None:
    x = 3 * np.random.default_rng(2).normal(size=(B, *shape))
    plain = restless(FLOW)
    for wrap in (*THRESHOLDS, lambda inner: Inpaint(inner, 0.3 * x[0], np.zeros(shape))):
        found, flat = ask(wrap(plain), x), ask(plain, x)
        assert found.x0.shape == x.shape and np.max(np.abs(found.x0 - flat.x0)) > 0.1
        t = T.reshape(-1, *[1] * len(shape))
        np.testing.assert_allclose((1 - t) * found.x0 + t * found.eps, x, atol=1e-9)
