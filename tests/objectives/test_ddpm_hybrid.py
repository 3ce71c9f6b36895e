"""Laws of DDPM's hybrid loss: what its weights are, what its bound trains, and how its times are drawn."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from archirf_jax.contracts import Models
from archirf_jax.errors import UserError
from archirf_jax.objectives import times
from archirf_jax.objectives.ddpm_hybrid import DdpmHybrid
from archirf_jax.objectives.regression import Draw, Regression
from archirf_jax.processes.base import expand
from archirf_jax.processes.ddpm import DDPM
from archirf_jax.processes.rectified_flow import RectifiedFlow
from archirf_jax.processes.variational_bound import bound
from tests.objectives.examples import Pair, evaluate, setting
from tests.processes.examples import answers, images, within_error

pytestmark = pytest.mark.usefixtures("float64")
X0: Any = images(64)


@pytest.mark.parametrize("respacing", [None, "7", "10,20,30", "ddim50"])
def test_training_times_are_the_visited_steps_alike(respacing: str | None) -> None:
    process = DDPM(steps=100, respacing=respacing)
    t, weights = jax.jit(lambda key: times.of_steps(key, process, 20000))(jax.random.key(0))
    step = np.asarray(process.network_time(t)).astype(int)
    assert set(step) == set(process.visited)
    assert scipy.stats.chisquare(np.bincount(np.searchsorted(process.visited, step))).pvalue > 1e-3
    np.testing.assert_array_equal(weights, 1)
    objective = DdpmHybrid(process=process)
    drawn = objective.draw(jax.random.key(0), setting(process, null={}), jnp.zeros((20000, 1, 1, 1), t.dtype), {})
    first = jax.random.split(jax.random.key(0), 3)[0]
    np.testing.assert_array_equal(drawn.t, times.of_steps(first, process, 20000)[0])
    regression = Regression(time_distribution="steps").sample_times(first, process, 20000)
    np.testing.assert_array_equal(drawn.t, regression[0])


def draw(t: Any, process: DDPM) -> tuple[Draw, jax.Array]:
    """64 images and noises at these times, and what they make."""
    x0, eps = jnp.asarray(X0), jnp.asarray(np.random.default_rng(2).normal(size=X0.shape))
    return Draw(x0, eps, t, jnp.ones_like(t), {}), process.noised(x0, eps, t)


def losses(process: DDPM, output: Any, t: Any, **fields: Any) -> tuple[jax.Array, Any, Any]:
    """(losses, metrics, noted) of a network's answer to 64 noised images."""
    objective = DdpmHybrid(process=process, **fields)
    return jax.jit(lambda output: objective.losses(Models(answers(output)), setting(process), draw(t, process)[0]))(
        jnp.asarray(output)
    )


def test_the_bound_trains_the_variance_alone_and_the_square_error_the_rest() -> None:
    output = np.random.default_rng(1).normal(size=(64, 2, 3, 4))
    t = jnp.arange(1, 65) / 100

    def slope(bound_weight: float) -> Any:
        process = DDPM(steps=100, variance="learned_range")
        return jax.grad(lambda o: jnp.sum(losses(process, o, t, bound_weight=bound_weight)[0]))(jnp.asarray(output))

    without, with_bound = slope(0.0), slope(0.001)
    assert np.all(without[..., 2:] == 0) and np.all(without[..., :2] != 0)
    np.testing.assert_array_equal(with_bound[..., :2], without[..., :2])
    assert np.all(with_bound[..., 2:] != 0)


@pytest.mark.parametrize(
    ("prediction", "fields", "variance"),
    [
        ("x0", {}, "fixed_small"),
        ("v", {"weighting": "min_snr"}, "fixed_small"),
        ("x0", {"weighting": "min_snr"}, "learned_range"),
        ("v", {}, "learned_range"),
        ("v", {"loss_space": "x0"}, "fixed_small"),
        ("x0", {"loss_space": "velocity"}, "fixed_small"),
    ],
)
def test_the_loss_of_pure_noise_and_its_gradient_are_finite(
    prediction: str, fields: dict[str, Any], variance: str
) -> None:
    process = DDPM(steps=10, prediction=prediction, variance=variance, zero_terminal_snr=True)
    made: Any = Regression(**fields) if "loss_space" in fields else DdpmHybrid(process=process, **fields)
    output = np.random.default_rng(1).normal(size=(64, 2, 3, process.output_channels(2)))
    drawn, x = draw(jnp.ones(64), process)
    np.testing.assert_array_equal(x, drawn.eps)
    for dtype in (jnp.float32, jnp.float64):
        given = jax.tree.map(lambda leaf, dtype=dtype: leaf.astype(dtype), drawn)

        def loss(output: Any, given: Any = given) -> jax.Array:
            return made.losses(Models(answers(output)), setting(process), given)[0]

        each, slope = jax.jit(lambda o: (loss(o), jax.grad(lambda o: jnp.sum(loss(o)))(o)))(output.astype(dtype))
        assert np.all(np.isfinite(each)) and np.all(np.isfinite(slope))


@pytest.mark.parametrize(("respacing", "n", "likelihood"), [(None, 100, "exact"), ("25", 25, "adm")])
def test_the_bound_is_added_with_its_weight_times_the_number_of_steps(
    respacing: str | None, n: int, likelihood: str
) -> None:
    output = np.random.default_rng(1).normal(size=(64, 2, 3, 4))
    process = DDPM(steps=100, variance="learned_range", respacing=respacing)
    assert len(process.visited) == n
    index = jnp.arange(64) % n
    t = jnp.asarray(process.times)[index]
    simple, _, _ = losses(process, output, t, bound_weight=0.0)
    found, metrics, _ = losses(process, output, t, likelihood=likelihood)
    drawn, x = draw(t, process)
    expected = bound(process, process.interpret(jnp.asarray(output), x, t), drawn.x0, x, index, likelihood)
    np.testing.assert_allclose(found, simple + 0.001 * n * expected, rtol=1e-9)
    np.testing.assert_allclose(metrics["bound"], [np.mean(expected), 1], rtol=1e-6)


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_min_snr_weighs_the_same_error_of_the_image_the_same_whatever_is_learned(prediction: str) -> None:
    """min(SNR, gamma) of the square error in x0 (Hang et al. 2023)."""
    process = DDPM(prediction=prediction)
    t = jnp.arange(1, 65) / 65
    t = jnp.round(t * 1000) / 1000
    x = process.noised(X0, np.random.default_rng(2).normal(size=X0.shape), t)
    wrong = X0 + np.random.default_rng(3).normal(size=X0.shape)
    alpha, sigma = (expand(f(t), x) for f in (process.alpha, process.sigma))
    output = process.target(wrong, (x - alpha * wrong) / sigma, t)
    found, _, _ = losses(process, output, t, weighting="min_snr", min_snr_gamma=3.0)
    snr = np.ravel(alpha**2 / sigma**2)
    assert snr.min() < 3 < snr.max()
    np.testing.assert_allclose(found, np.minimum(snr, 3) * np.mean((wrong - X0) ** 2, axis=(1, 2, 3)), rtol=1e-9)


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_without_weighting_the_square_error_counts_as_it_is(prediction: str) -> None:
    process = DDPM(prediction=prediction)
    t = jnp.arange(1, 65) / 1000
    target = process.target(jnp.asarray(X0), np.random.default_rng(2).normal(size=X0.shape), t)
    np.testing.assert_allclose(losses(process, target + 2, t)[0], 4, rtol=1e-5)


def by_loss(process: DDPM) -> DdpmHybrid:
    """Times are drawn by their losses."""
    return DdpmHybrid(process=process, time_sampling="loss_second_moment")


def remembered(process: DDPM) -> Any:
    """A history in which the loss falls with the index."""
    objective, index = by_loss(process), jnp.tile(jnp.arange(len(process.visited)), 10)
    return jax.jit(objective.remember)(objective.init(), {"index": index, "losses": 5.0 / (1 + index)})


def drawn_times(process: DDPM, history: Any) -> tuple[np.ndarray, np.ndarray]:
    """Places (20000,) of the times drawn among the visited steps, and their weights."""
    tiny = jnp.zeros((20000, 1, 1, 1))
    drawn = jax.jit(lambda key: by_loss(process).draw(key, setting(process, history, {}), tiny, {}))(jax.random.key(0))
    return np.asarray(process.index(drawn.t)), np.asarray(drawn.weight)


@pytest.mark.parametrize("respacing", [None, "13"])
def test_times_drawn_by_their_losses_are_weighted_back_to_uniform(respacing: str | None) -> None:
    process = DDPM(steps=50, respacing=respacing)
    n = len(process.visited)
    index, weights = drawn_times(process, remembered(process))
    p = 0.999 / (1 + np.arange(n)) / np.sum(1 / (1 + np.arange(n))) + 0.001 / n
    assert scipy.stats.chisquare(np.bincount(index, minlength=n), 20000 * p).pvalue > 1e-3
    np.testing.assert_allclose(weights, 1 / (n * p[index]), rtol=1e-4)
    for function in (np.cos(np.arange(n)), np.arange(n) / n, np.ones(n)):
        assert within_error(weights * function[index], function.mean())


def test_a_history_that_is_not_full_draws_all_times_alike() -> None:
    process = DDPM(steps=50)
    objective = by_loss(process)
    history = objective.remember(objective.init(), {"index": jnp.arange(50), "losses": jnp.arange(50.0)})
    index, weights = drawn_times(process, history)
    assert scipy.stats.chisquare(np.bincount(index)).pvalue > 1e-3
    np.testing.assert_allclose(weights, 1, rtol=1e-5)


def echo(x: jax.Array, t: jax.Array, condition: Any, *, s: Any = None) -> Any:
    """A network that answers its input."""
    return x, {}


def test_the_expected_loss_does_not_depend_on_how_times_are_drawn() -> None:
    """A network that predicts x_t as x0 has a loss that changes with the time."""
    x0: Any = np.linspace(-1, 1, 20000).reshape(-1, 1, 1, 1)
    process = DDPM(steps=50, beta_end=0.3, prediction="x0")
    trained, history = Pair(process, by_loss(process)), remembered(process)
    found = jax.jit(lambda key: evaluate(trained, key, echo, x0, objective_state=history))(jax.random.key(0))
    assert np.ptp(found.drawn.weight) > 1
    a, s = (f(np.arange(1, 51) / 50) for f in (process.alpha, process.sigma))
    assert within_error(found.losses, np.mean((a - 1) ** 2 * np.mean(x0**2) + s**2))


def test_what_is_noted_are_the_places_and_the_losses_without_the_weights_of_the_times() -> None:
    process = DDPM(steps=50, prediction="x0", beta_end=0.3)
    objective, history = by_loss(process), remembered(process)
    found = evaluate(Pair(process, objective), jax.random.key(0), echo, images(300), objective_state=history)
    np.testing.assert_array_equal(found.noted["index"], np.round(50 * np.asarray(found.drawn.t)) - 1)
    np.testing.assert_allclose(found.noted["losses"] * found.drawn.weight, found.losses, rtol=1e-9)
    after = objective.remember(objective.init(), found.noted)
    np.testing.assert_array_equal(after.written, np.bincount(found.noted["index"], minlength=50))
    last = dict(zip(np.asarray(found.noted["index"]), np.asarray(found.noted["losses"]), strict=True))
    assert all(loss in np.asarray(after.losses)[i] for i, loss in last.items())


@pytest.mark.parametrize("process", [RectifiedFlow(), None])
def test_another_process_is_refused(process: Any) -> None:
    with pytest.raises(UserError) as caught:
        DdpmHybrid(process=process)
    assert caught.value.field == "objective.name"
