"""Laws of denoising diffusion: its betas, its posterior, and the variance of its steps."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archirf_jax import processes, registry
from archirf_jax.contracts import Prediction
from archirf_jax.errors import UserError
from archirf_jax.processes.ddpm import DDPM
from tests.processes.examples import bayes

pytestmark = pytest.mark.usefixtures("float64")
SCHEDULES = ("linear", "scaled_linear", "cosine")
RESPACINGS = (None, "7", "10,20,30", "ddim50")
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


@pytest.mark.parametrize("respacing", RESPACINGS)
def test_times_of_visited_steps_lead_back_to_their_places(respacing: str | None) -> None:
    process = DDPM(steps=100, respacing=respacing)
    for dtype in (jnp.float32, jnp.float64):
        t = jnp.asarray(process.times, dtype)
        np.testing.assert_array_equal(process.network_time(t), process.visited)
        np.testing.assert_array_equal(jax.jit(process.index)(t), np.arange(len(process.visited)))


@pytest.mark.parametrize("steps", [2, 37, 1000])
@every_schedule
def test_a_zero_terminal_snr_moves_and_scales_the_root_of_abar(schedule: str, steps: int) -> None:
    """Lin et al. 2023, Algorithm 1."""
    process, plain = (DDPM(schedule=schedule, steps=steps, prediction="v", zero_terminal_snr=z) for z in (True, False))
    root, before = np.sqrt(np.cumprod(1 - process.betas)), np.sqrt(np.cumprod(1 - plain.betas))
    assert root[-1] == 0 and root[0] == pytest.approx(before[0], rel=1e-12)
    np.testing.assert_allclose(root, root[0] * (before - before[-1]) / (before[0] - before[-1]), rtol=1e-9, atol=1e-15)
    times = np.arange(1, steps + 1) / steps
    np.testing.assert_allclose(process.alpha(times), root, rtol=1e-9, atol=1e-15)
    assert all(np.all(np.isfinite(column)) for column in process.posterior)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@every_schedule
def test_a_zero_terminal_snr_is_reached_continuously_and_exactly(schedule: str, dtype: Any) -> None:
    process = DDPM(schedule=schedule, steps=50, prediction="v", zero_terminal_snr=True)
    t = np.linspace(0, 1, 2001).astype(dtype)
    for alpha, sigma in (
        (process.alpha(t), process.sigma(t)),
        jax.jit(lambda t: (process.alpha(t), process.sigma(t)))(t),
    ):
        alpha, sigma = np.asarray(alpha), np.asarray(sigma)
        assert (alpha[0], sigma[0], alpha[-1], sigma[-1]) == (1, 0, 0, 1)
        assert np.all(np.diff(alpha) < 0) and np.all(np.diff(sigma) > -1e-7)
        assert np.max(-np.diff(alpha)) < 0.05
        np.testing.assert_allclose(alpha**2 + sigma**2, 1, atol=1e-6)
    back = process.time_of_ratio(np.append(process.ratio(t[:-1]), dtype(np.inf)))
    np.testing.assert_allclose(back, t, atol=1e-9 if dtype == np.float64 else 2e-4)
    assert back[-1] == 1


@pytest.mark.parametrize("field, given", [("prediction", {"prediction": "eps"}), ("steps", {"steps": 1})])
def test_what_a_zero_terminal_snr_leaves_undefined_is_refused(field: str, given: dict[str, Any]) -> None:
    with pytest.raises(UserError) as caught:
        DDPM(**{"prediction": "v", "zero_terminal_snr": True} | given)
    assert caught.value.field == f"process.{field}"


def test_between_steps_abar_is_interpolated_and_beyond_them_it_is_that_of_the_ends() -> None:
    process, random = DDPM(steps=50), np.random.default_rng(0)
    t = jnp.asarray(np.append(random.uniform(-0.1, 1.1, 99), np.arange(51) / 50))
    for through in (lambda f: f, lambda f: jax.grad(lambda t: f(t).sum())):
        found = through(lambda t: -2 * jnp.log(process.alpha(t)))(t)
        expected = through(lambda t: jnp.interp(t * 50, np.arange(51.0), process.minus_log_abar))(t)
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


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
def test_the_network_is_given_whole_numbers_at_steps_and_fractions_between(steps: int, dtype: Any) -> None:
    process = DDPM(steps=steps)
    t = jnp.asarray((np.arange(steps) + 1) / steps, dtype)
    for given in (process.network_time(t), process.network_time(np.asarray(t)), jax.jit(process.network_time)(t)):
        assert given.dtype == dtype
        np.testing.assert_array_equal(given, np.arange(steps))
    np.testing.assert_allclose(process.network_time(t - 0.25 / steps), np.arange(steps) - 0.25, atol=1e-3)


@pytest.mark.parametrize("respacing", RESPACINGS)
@every_schedule
def test_the_posterior_is_bayes_rule(schedule: str, respacing: str | None) -> None:
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
    prediction = Prediction(one, 2 * one, None if variance is None else variance * one)
    mean, log_variance = jax.jit(process.p_moments)(prediction, 3 * one, jnp.arange(n))
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
    prediction = process.interpret(output, jnp.ones((2, 1, 1, 1)), jnp.full(2, 0.5))
    np.testing.assert_array_equal(np.ravel(prediction.eps), [7, 7])
    assert prediction.variance is not None
    np.testing.assert_array_equal(np.ravel(prediction.variance), [0, 1])


@pytest.mark.parametrize("share", [-0.4, 0.3, 1.4])
def test_on_the_step_to_the_data_no_learned_variance_is_left(share: float) -> None:
    prediction = Prediction(jnp.zeros(1), jnp.zeros(1), jnp.full(1, share))
    found = DDPM(variance="learned_range").step_variance(prediction, jnp.zeros(()), jnp.full((), 1e-4))
    np.testing.assert_array_equal(found, [0.0])


def test_the_variance_of_a_samplers_step_is_the_one_that_is_named() -> None:
    small, large = jnp.asarray(0.01), jnp.asarray(0.04)
    fixed = Prediction(jnp.ones(1), jnp.ones(1))
    assert DDPM(variance="fixed_small").step_variance(fixed, small, large) == small
    assert DDPM(variance="fixed_large").step_variance(fixed, small, large) == large
    learned = DDPM(variance="learned_range")
    for share, expected in ((0.0, 0.01), (1.0, 0.04), (0.5, 0.02)):
        prediction = fixed._replace(variance=jnp.full(1, share))
        np.testing.assert_allclose(learned.step_variance(prediction, small, large), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("schedule", "quadratic"),
        ("prediction", "velocity"),
        ("variance", "learned"),
        ("steps", 0),
        ("steps", -3),
        ("beta_start", -0.1),
        ("beta_start", 0.0),
        ("beta_start", 1.0),
        ("beta_end", 1.0),
        ("beta_end", float("nan")),
        ("respacing", "many"),
        ("respacing", "1001"),
        ("respacing", "ddim999"),
    ],
)
def test_a_field_out_of_range_is_named_with_its_value(field: str, value: Any) -> None:
    with pytest.raises(UserError) as caught:
        registry.build(processes, "process.name", "ddpm", {field: value})
    assert caught.value.field == f"process.{field}" and caught.value.value is value
