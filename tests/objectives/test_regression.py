"""Laws of the mean square error: in every space of the loss, at every distribution of times."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from jax.test_util import check_grads

from archirf_jax.contracts import Models
from archirf_jax.errors import UserError
from archirf_jax.objectives.regression import SPACES, Draw, Regression
from archirf_jax.objectives.times import OF_FLOWS, CosMap, LogitNormal, Mode, Shifted, Uniform
from archirf_jax.processes.base import Process, expand
from archirf_jax.processes.conversions import Path, convert
from archirf_jax.processes.ddpm import DDPM
from archirf_jax.processes.edm import EDM
from archirf_jax.processes.rectified_flow import RectifiedFlow
from tests.objectives.examples import Pair, evaluate, setting
from tests.processes.examples import LEARNERS, Spy, answers, every_learner, images, knows, within_error

pytestmark = pytest.mark.usefixtures("float64")
KEY = jax.random.key(0)
X0 = images(64)
EPS = np.random.default_rng(1).normal(size=X0.shape)
OUTPUT = np.random.default_rng(2).normal(size=X0.shape)
# Off the knots of -log abar, where no derivative is.
TIMES = np.linspace(0.0513, 0.9513, 64)
# One number an example: many draws for little work.
TINY: Any = np.linspace(-1, 1, 4000, dtype=np.float64).reshape(-1, 1, 1, 1)


def draw(t: Any, dtype: Any = np.float64) -> Draw:
    """X0 and EPS at these times."""
    t = jnp.asarray(t, dtype)
    return Draw(jnp.asarray(X0[: len(t)], dtype), jnp.asarray(EPS[: len(t)], dtype), t, jnp.ones_like(t), {})


def losses(process: Process, output: Any, drawn: Draw, **fields: Any) -> jax.Array:
    """The losses of a network's answer."""
    return Regression(**fields).losses(Models(answers(output)), setting(process), drawn)[0]


@every_learner
def test_the_network_that_answers_the_target_has_no_loss_in_any_space(process: Process) -> None:
    drawn = draw([1e-6, 1e-3, *TIMES[3:-2], 1 - 1e-3, 1 - 1e-6])
    for space in (None, *SPACES):
        target = process.target(drawn.x0, drawn.eps, drawn.t)
        np.testing.assert_array_equal(losses(process, target, drawn, loss_space=space), 0)


@every_learner
def test_the_loss_in_a_space_is_the_square_error_of_the_converted_answer(process: Process) -> None:
    """Where no divisor is held; derivatives of alpha and sigma are jax.grad's."""
    drawn, t = draw(TIMES), jnp.asarray(TIMES)
    values = process.alpha(t), process.sigma(t)
    rates = jax.vmap(jax.grad(process.alpha))(t), jax.vmap(jax.grad(process.sigma))(t)
    path = Path(*(expand(value, drawn.x0) for value in (*values, *rates)))
    x = process.noised(drawn.x0, drawn.eps, t)
    x0, target = process.interpret(jnp.asarray(OUTPUT), x, t).x0, drawn.x0
    for space in SPACES:
        error = convert("x0", space, path, x0, x) - convert("x0", space, path, target, x)
        found = losses(process, OUTPUT, drawn, loss_space=space, smallest_divisor=1e-9)
        np.testing.assert_allclose(found, np.mean(error**2, axis=(1, 2, 3)), rtol=1e-7)


@pytest.mark.parametrize("name", [name for name in LEARNERS if name.split("-")[-1] in SPACES])
def test_the_loss_in_the_networks_own_space_is_that_without_one(name: str) -> None:
    process, drawn = LEARNERS[name], draw([1e-6, *TIMES[1:-1], 1 - 1e-6])
    own = losses(process, OUTPUT, drawn, loss_space=name.split("-")[-1])
    np.testing.assert_allclose(own, losses(process, OUTPUT, drawn), rtol=1e-12)


def test_data_predicted_with_the_velocity_in_the_loss_is_jits_loss() -> None:
    """Li & He 2025, Sec. 4: v = (x_t - x0) / max(t, 0.05), for the answer and for the data alike."""
    t = np.append([1e-6, 1e-3, 0.02, 0.05], TIMES[4:])
    drawn, process = draw(t), RectifiedFlow(prediction="x0")
    x = process.noised(drawn.x0, drawn.eps, drawn.t)
    held = np.maximum(t, 0.05)[:, None, None, None]
    expected = np.mean(((x - OUTPUT) / held - (x - drawn.x0) / held) ** 2, axis=(1, 2, 3))
    np.testing.assert_allclose(losses(process, OUTPUT, drawn, loss_space="velocity"), expected, rtol=1e-9)


@every_learner
def test_losses_and_gradients_are_finite_in_single_precision_near_both_ends(process: Process) -> None:
    with jax.enable_x64(False):
        drawn, output = draw([1e-6, 1e-4, 0.5, 1 - 1e-4, 1], np.float32), jnp.asarray(OUTPUT[:5], jnp.float32)

        def totals(output: Any) -> jax.Array:
            return jnp.stack([jnp.sum(losses(process, output, drawn, loss_space=space)) for space in SPACES])

        values, slopes = jax.jit(lambda output: (totals(output), jax.jacrev(totals)(output)))(output)
        for space, value, slope in zip(SPACES, values, slopes, strict=True):
            assert np.isfinite(value) and np.all(np.isfinite(slope)), space


@pytest.mark.parametrize(
    ("process", "space"),
    [(RectifiedFlow(), None), (RectifiedFlow(prediction="x0"), "velocity"), (EDM(), "velocity"), (DDPM(), "x0")],
)
def test_losses_have_higher_derivatives(process: Process, space: str | None) -> None:
    drawn = draw(TIMES[:4])

    @jax.jit
    def loss(scale: jax.Array, x0: jax.Array) -> jax.Array:
        def network(x: jax.Array, t: jax.Array, condition: Any, *, s: Any = None) -> Any:
            return jnp.sin(scale * x), {}

        models, objective = Models(network), Regression(loss_space=space)
        return jnp.mean(objective.losses(models, setting(process), drawn._replace(x0=x0))[0])

    check_grads(loss, (jnp.asarray(0.7), drawn.x0), order=2, modes=("fwd", "rev"), rtol=1e-3, atol=1e-3)


def test_a_learned_variance_is_refused() -> None:
    """With one channel of the data two of the network would broadcast."""
    drawn = draw(TIMES)._replace(x0=jnp.asarray(X0[..., :1]), eps=jnp.asarray(EPS[..., :1]))
    with pytest.raises(UserError) as caught:
        losses(DDPM(variance="learned_range"), OUTPUT, drawn)
    assert caught.value.field == "objective.name"


def test_the_loss_of_a_silent_network_is_the_mean_square_of_the_velocity() -> None:
    """eps is standard normal, so |eps - x0|^2 is 1 + x0^2 on average, with variance 2 + 4 x0^2."""
    process = RectifiedFlow()
    found = evaluate(Pair(process, Regression(time_distribution="logit_normal")), KEY, Spy(process), TINY)
    square = TINY.astype(np.float64) ** 2
    standard_error = np.sqrt(np.sum(2 + 4 * square)) / len(TINY)
    assert abs(np.mean(found.losses) - np.mean(1 + square)) < 4 * standard_error


def test_edms_loss_of_a_silent_network_is_one_for_data_of_the_stated_deviation() -> None:
    process = EDM()
    x0: Any = 0.5 * np.random.default_rng(0).normal(size=(4000, 1, 1, 1))
    found = evaluate(Pair(process, Regression(time_distribution="log_normal")), KEY, Spy(process), x0)
    assert within_error(found.losses, 1.0)


@pytest.mark.parametrize("sigma_data", [0.5, 1.0])
def test_edms_loss_is_the_papers_weight_of_the_denoisers_square_error(sigma_data: float) -> None:
    process = EDM(sigma_data=sigma_data)
    trained = Pair(process, Regression(time_distribution="log_normal"))
    found = evaluate(trained, KEY, knows(process, X0, error=OUTPUT), X0)
    sigma = np.asarray(process.sigma(found.drawn.t))
    weight = (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2
    c_out = (sigma * sigma_data / np.sqrt(sigma**2 + sigma_data**2))[:, None, None, None]
    np.testing.assert_allclose(found.losses, weight * np.mean((c_out * OUTPUT) ** 2, axis=(1, 2, 3)), rtol=1e-6)


@pytest.mark.parametrize(("P_mean", "P_std"), [(-1.2, 1.2), (-0.4, 1.0), (1.0, 0.5)])
@pytest.mark.parametrize("process", [EDM(), RectifiedFlow()], ids=["edm", "flow"])
def test_the_logarithm_of_the_ratio_is_normal_for_log_normal_times(
    process: Process, P_mean: float, P_std: float
) -> None:
    objective = Regression(time_distribution="log_normal", P_mean=P_mean, P_std=P_std)
    t, weights = objective.sample_times(KEY, process, 4000)
    log_ratio = np.log(np.asarray(process.ratio(t), np.float64))
    assert scipy.stats.kstest((log_ratio - P_mean) / P_std, "norm").pvalue > 1e-3
    np.testing.assert_array_equal(weights, 1)


def test_times_of_steps_are_for_processes_that_have_steps() -> None:
    with pytest.raises(UserError) as caught:
        Regression(time_distribution="steps").sample_times(KEY, RectifiedFlow(), 3)
    assert (caught.value.field, caught.value.value) == ("objective.time_distribution", "steps")


@pytest.mark.parametrize("times", ["log_normal", "steps"])
@pytest.mark.parametrize(("field", "value"), [("loss_weighting", "uniform"), ("shift", 3.0)])
def test_what_these_times_would_ignore_is_refused(times: str, field: str, value: Any) -> None:
    with pytest.raises(UserError) as caught:
        Regression(**{"time_distribution": times, field: value})
    assert (caught.value.field, caught.value.value) == (f"objective.{field}", value)


DISTRIBUTIONS: dict[str, Any] = {
    "uniform": Uniform(),
    "logit_normal": LogitNormal(-0.3, 1.2),
    "mode": Mode(0.8),
    "cosmap": CosMap(),
}
FIELDS: dict[str, Any] = {"logit_mean": -0.3, "logit_std": 1.2, "mode_scale": 0.8}


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("name", OF_FLOWS)
def test_times_are_those_of_the_named_distribution_and_weigh_the_same(name: str, shift: float) -> None:
    objective = Regression(time_distribution=name, shift=shift, **FIELDS)
    t, weights = objective.sample_times(KEY, RectifiedFlow(), 100)
    np.testing.assert_array_equal(t, Shifted(DISTRIBUTIONS[name], shift).sample(KEY, 100))
    np.testing.assert_array_equal(weights, np.ones(100))


@pytest.mark.parametrize(
    ("drawn", "weighting", "shift"),
    [(d, w, 3.0 if (i + j) % 2 else 1.0) for i, d in enumerate(OF_FLOWS) for j, w in enumerate(OF_FLOWS)],
)
def test_weighted_means_are_those_of_the_distribution_of_the_weighting(
    drawn: str, weighting: str, shift: float
) -> None:
    """Of a function that is 0 near the ends, where weights may have no finite variance."""

    def function(t: Any) -> Any:
        return np.where((t > 0.1) & (t < 0.8), np.exp(-2 * t), 0)

    objective = Regression(time_distribution=drawn, loss_weighting=weighting, shift=shift, **FIELDS)
    t, weights = objective.sample_times(KEY, RectifiedFlow(), 20000)
    places = np.linspace(0.1, 0.8, 2001)
    density = np.asarray(DISTRIBUTIONS[weighting].density(jnp.asarray(places)), np.float64)
    expected = scipy.integrate.simpson(np.exp(-2 * places) * density, x=places)
    assert within_error(np.asarray(weights, np.float64) * function(np.asarray(t)), expected)


def test_the_weights_of_the_times_weigh_the_losses_and_not_what_is_reported() -> None:
    process = RectifiedFlow()
    trained = Pair(process, Regression(time_distribution="uniform", loss_weighting="logit_normal"))
    found = evaluate(trained, KEY, knows(process, X0, error=1.0), X0)
    np.testing.assert_allclose(found.losses, LogitNormal().density(found.drawn.t), rtol=1e-6)
    for total, count in found.metrics.values():
        np.testing.assert_allclose(total, count, rtol=1e-6)
