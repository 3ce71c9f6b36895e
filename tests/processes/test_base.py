"""Laws of every process: its clock, what the network is given, and what its answer means."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.test_util import check_grads

from archirf_jax.errors import UserError
from archirf_jax.processes.base import Process, ask, expand
from archirf_jax.processes.ddpm import DDPM
from archirf_jax.processes.edm import EDM
from archirf_jax.processes.oracles import process_time
from archirf_jax.processes.rectified_flow import RectifiedFlow
from tests.processes.examples import CLOCKS, LEARNERS, Spy, answers, every_clock, every_learner, images, knows, predict

pytestmark = pytest.mark.usefixtures("float64")
TIMES: Any = np.linspace(0, 1, 64)
X0 = images(64)
SOME = [*LEARNERS.values()][::3]  # every path and prediction of flows, and two of the others' kinds


def tall(values: Any) -> Any:
    """(B,) to broadcast against images."""
    return values[:, None, None, None]


@every_clock
def test_the_path_starts_at_the_data_and_noise_gains_on_it_at_every_time(process: Process) -> None:
    assert process.alpha(TIMES)[0] == 1 and process.sigma(TIMES)[0] == 0
    assert np.all(np.diff(process.alpha(TIMES)) <= 0) and np.all(np.diff(process.sigma(TIMES)) > 0)
    assert np.all(np.diff(process.flow_time(TIMES)) > 0)
    assert process.flow_time(TIMES)[0] == 0 and process.flow_time(TIMES)[-1] <= 1


@every_clock
def test_the_ratio_and_the_flow_time_are_what_they_say(process: Process) -> None:
    alpha, sigma = process.alpha(TIMES), process.sigma(TIMES)
    np.testing.assert_allclose(process.ratio(TIMES[:-1]), sigma[:-1] / alpha[:-1], rtol=1e-13)
    np.testing.assert_allclose(process.flow_time(TIMES), sigma / (alpha + sigma), rtol=1e-13)


@every_clock
def test_every_process_is_a_line_in_its_flow_time(process: Process) -> None:
    x0, eps = images(64), np.random.default_rng(1).normal(size=images(64).shape)
    tau: Any = process.flow_time(TIMES)
    along = process.noised(x0, eps, TIMES) / tall(process.alpha(TIMES) + process.sigma(TIMES))
    np.testing.assert_allclose(along, tall(1 - tau) * x0 + tall(tau) * eps, atol=1e-12)


@every_clock
def test_the_time_of_a_ratio_is_the_inverse_of_the_ratio(process: Process) -> None:
    np.testing.assert_allclose(process.time_of_ratio(process.ratio(TIMES[:-1])), TIMES[:-1], atol=1e-9)


@every_clock
def test_network_times_rise_and_lead_back_to_the_times(process: Process) -> None:
    given = process.network_time(TIMES[1:])
    assert np.all(np.diff(given) > 0)
    np.testing.assert_allclose(process_time(process, given), TIMES[1:], atol=1e-12)


@every_clock
def test_network_times_are_finite_from_the_data_to_the_noise(process: Process) -> None:
    for dtype in (jnp.float32, jnp.float64):
        t = jnp.asarray(TIMES, dtype)
        assert np.all(np.isfinite(process.network_time(t)))
        assert np.all(np.isfinite(jax.jvp(process.network_time, (t,), (jnp.ones_like(t),))[1]))


@every_clock
def test_host_and_device_agree_and_the_device_in_both_precisions(process: Process) -> None:
    t = TIMES[1:-1]
    for name in ("alpha", "sigma", "ratio", "flow_time", "network_time"):
        on_host = getattr(process, name)(t)
        assert isinstance(on_host, np.ndarray) and on_host.dtype == np.float64
        for dtype, rtol in ((jnp.float64, 1e-12), (jnp.float32, 2e-3)):
            on_device = getattr(process, name)(jnp.asarray(t, dtype))
            assert on_device.dtype == dtype
            np.testing.assert_allclose(on_device, on_host, rtol=rtol, atol=2e-4 if dtype == jnp.float32 else 1e-12)


@every_learner
def test_the_network_that_knows_x0_predicts_data_and_noise(process: Process) -> None:
    eps = np.random.default_rng(1).normal(size=X0.shape)
    t = jnp.linspace(0.02, 0.98, len(X0))
    prediction = predict(process, knows(process, X0), process.noised(X0, eps, t), t)
    np.testing.assert_allclose(prediction.x0, X0, atol=1e-9)
    np.testing.assert_allclose(prediction.eps, eps, atol=1e-9)


@pytest.mark.parametrize(
    ("process", "shape"),
    [
        *((process, (2, 3, 2)) for process in LEARNERS.values()),
        *((process, shape) for process in SOME for shape in ((5,), (4, 2, 3, 2))),
    ],
)
def test_the_meaning_of_the_target_is_data_and_noise_of_any_rank(process: Process, shape: tuple[int, ...]) -> None:
    x0, eps = np.random.default_rng(1).normal(size=(2, 16, *shape))
    t = jnp.linspace(0.02, 0.98, 16)
    prediction = process.interpret(process.target(x0, eps, t), process.noised(x0, eps, t), t)
    np.testing.assert_allclose(prediction.x0, x0, atol=1e-9)
    np.testing.assert_allclose(prediction.eps, eps, atol=1e-9)
    each = [
        process.target(*pair, t[i : i + 1])[0] for i, pair in enumerate(zip(x0[:3, None], eps[:3, None], strict=True))
    ]
    np.testing.assert_allclose(process.target(x0, eps, t)[:3], each, rtol=1e-12)


@every_learner
def test_whatever_the_network_answers_its_data_and_noise_make_up_its_input(process: Process) -> None:
    output = np.random.default_rng(1).normal(size=(64, 2, 3, process.output_channels(2)))
    t = jnp.linspace(0.02, 0.98, len(X0))
    prediction = predict(process, answers(output), X0, t)
    np.testing.assert_allclose(process.noised(*prediction[:2], t), X0, atol=1e-9)


@every_learner
def test_the_target_of_what_an_answer_means_is_the_answer(process: Process) -> None:
    output = np.random.default_rng(1).normal(size=X0.shape)
    t = jnp.linspace(0.02, 0.98, len(X0))
    prediction = process.interpret(jnp.asarray(output), jnp.asarray(X0), t)
    np.testing.assert_allclose(process.target(prediction.x0, prediction.eps, t), output, atol=1e-8)


@pytest.mark.parametrize("process", SOME)
def test_noise_target_and_meaning_have_derivatives_by_data_and_time(process: Process) -> None:
    """Off the knots of -log abar, where a DDPM has none by the time."""
    x0, eps = np.random.default_rng(1).normal(size=(2, 6, 3))
    t = jnp.linspace(0.1003, 0.9003, 6)

    @jax.jit
    def all_of(x0: jax.Array, eps: jax.Array, t: jax.Array) -> Any:
        x = process.noised(x0, eps, t)
        return x, process.target(x0, eps, t), process.interpret(jnp.sin(x), x, t)[:2], process.network_input(x, t)

    check_grads(all_of, (x0, eps, t), order=1, modes=("fwd", "rev"), rtol=1e-4, atol=1e-4, eps=1e-6)


@every_learner
def test_the_network_is_given_network_times_and_inputs(process: Process) -> None:
    spy, t = Spy(process), jnp.linspace(0.02, 0.98, len(X0))
    condition = {"label": jnp.arange(64)}
    output, extras = ask(process, spy, X0, t, condition, s=t / 2)
    assert output.shape == (*X0.shape[:-1], process.output_channels(2)) and set(extras) == {"log_variance"}
    np.testing.assert_array_equal(spy.x, process.network_input(X0, t))
    np.testing.assert_array_equal(spy.t, process.network_time(t))
    np.testing.assert_array_equal(spy.s, process.network_time(t / 2))
    assert spy.condition is condition
    ask(process, spy, X0, t, condition)
    assert spy.s is None


@pytest.mark.parametrize("process", [RectifiedFlow(), DDPM(), DDPM(variance="learned_range"), EDM()])
def test_a_network_with_other_channels_is_refused(process: Process) -> None:
    """With one channel of the data two of the network would broadcast."""
    grey = X0[..., :1]
    wrong = answers(np.concatenate([grey] * (3 - process.output_channels(1)), axis=-1))
    with pytest.raises(UserError) as caught:
        ask(process, wrong, grey, jnp.full(len(X0), 0.5), {})
    assert caught.value.field == "model"  # not every network has the field learn_sigma


@pytest.mark.parametrize("t", [1.0, 0.3])
@pytest.mark.parametrize("name", ["linear", "vp", "scaled_linear", "edm"])
def test_the_prior_is_normal_and_as_large_as_the_noise(name: str, t: float) -> None:
    process = CLOCKS[name]
    prior = process.prior(jax.random.key(0), (10, 20, 20), t)
    assert prior.shape == (10, 20, 20)
    assert scipy.stats.kstest(np.ravel(prior) / process.sigma(np.asarray(t)), "norm").pvalue > 1e-3
    if t == 1:
        np.testing.assert_array_equal(process.prior(jax.random.key(0), (10, 20, 20)), prior)


def test_expanded_values_broadcast_along_the_batch_alone() -> None:
    like = jnp.zeros((3, 2, 2, 1))
    expanded = expand(jnp.asarray([1.0, 2.0, 3.0]), like)
    assert expanded.shape == (3, 1, 1, 1)
    np.testing.assert_array_equal((like + expanded)[:, 1, 0, 0], [1, 2, 3])
