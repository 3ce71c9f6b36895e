"""Noise of solvers: as large as it should be, fresh at each step, none at the end; and networks of two times."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archirf_jax import registry
from archirf_jax.processes.base import Process, expand
from archirf_jax.processes.ddpm import DDPM
from archirf_jax.processes.edm import EDM
from archirf_jax.processes.oracles import gaussian
from archirf_jax.processes.rectified_flow import RectifiedFlow
from archirf_jax.samplers import solvers
from archirf_jax.samplers.denoisers import NetworkDenoiser
from archirf_jax.samplers.sample import sample
from archirf_jax.samplers.solvers.ddim import Ddim
from archirf_jax.samplers.solvers.ddpm import Ddpm
from archirf_jax.samplers.solvers.dpmpp_2m import DpmSolver
from archirf_jax.samplers.solvers.edm import Edm
from archirf_jax.samplers.solvers.euler import Euler
from archirf_jax.samplers.solvers.euler_maruyama import EulerMaruyama
from archirf_jax.samplers.solvers.heun import Heun
from archirf_jax.samplers.solvers.midpoint import Midpoint
from tests.samplers import exact
from tests.samplers.test_solvers import WEAK_ORDERS

FLOW = RectifiedFlow()
RANDOM = np.random.default_rng(0)
U = RANDOM.normal(size=(6, 2))
Z = RANDOM.normal(size=(16, 6, 2))


def make(name: str) -> Any:
    return registry.build(solvers, "sample.solver.name", name, {})


def slope(steps: Any, values: Any) -> float:
    return float(np.polyfit(np.log(steps), np.log(values), 1)[0])


MEAN, STD = 0.3, 0.5


def affine(solver: Any, process: Process, *grids: np.ndarray) -> list[np.ndarray]:
    """(N, 3) offset, factor and noise of each step, which a perfect network of a normal distribution makes affine."""
    denoiser = exact.perfect(process, gaussian(MEAN, STD))
    x, z = (np.asarray(values).reshape(3, 1, 1, 1) for values in ([0.0, 1.0, 0.0], [0.0, 0.0, 1.0]))
    state = solver.init(denoiser, grids[0], jnp.asarray(x))

    def step(times: Any) -> Any:
        return solver.step(jnp.asarray(z), denoiser, jnp.asarray(x), *times, {}, state)[0].ravel()

    offset, factor, noise = np.asarray(jax.jit(jax.vmap(step))(jnp.concatenate(grids))).T
    rows = np.stack([offset, factor - offset, noise - offset], axis=1)
    return np.split(rows, np.cumsum([len(grid) for grid in grids])[:-1])


def moments(steps: np.ndarray, mean: float, variance: float) -> tuple[float, float]:
    """Mean and variance after affine steps from those given."""
    for offset, factor, noise in steps:
        mean, variance = offset + factor * mean, factor**2 * variance + noise**2
    return mean, variance


def textbook_sde(grid: np.ndarray, eta: float) -> np.ndarray:
    """`affine` for Euler-Maruyama on dx = (v + eta^2 tau score) dtau backwards, written for N(MEAN, STD^2)."""
    rows = []
    for t, t_next in grid:
        w = 2 * eta**2 * t if t_next > 0 else 0.0
        variance = (1 - t) ** 2 * STD**2 + t**2
        growth = (t - (1 - t) * STD**2) / variance  # of the deviation from the mean along the ODE
        drift = growth + w / 2 / variance
        offset = (t_next - t) * (-MEAN - drift * (1 - t) * MEAN)
        rows.append([offset, 1 + (t_next - t) * drift, np.sqrt(w * (t - t_next))])
    return np.asarray(rows)


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_euler_maruyama_is_the_step_of_the_reverse_sde(eta: float) -> None:
    with jax.enable_x64(True):
        grid = exact.grid("uniform", FLOW, 6)
        np.testing.assert_allclose(affine(EulerMaruyama(eta), FLOW, grid)[0], textbook_sde(grid, eta), atol=1e-10)


@pytest.mark.parametrize(
    ("name", "process"), [("ddpm", FLOW), ("ddpm", DDPM(variance="fixed_large")), ("euler_maruyama", FLOW)]
)
def test_mean_and_variance_converge_with_the_weak_order_of_the_solver(name: str, process: Process) -> None:
    """The mean even stays, as the mean of normal data moves along a line."""
    steps, found = [32, 64, 128, 256], []
    with jax.enable_x64(True):
        ways = [exact.even(process, n, 0.97, 0.0) for n in steps]
        alpha, sigma = process.alpha(ways[0][0, 0]), process.sigma(ways[0][0, 0])
        for rows in affine(make(name), process, *ways):
            mean, variance = moments(rows, alpha * MEAN, alpha**2 * STD**2 + sigma**2)
            found.append([abs(mean - MEAN), abs(variance - STD**2)])
    means, variances = np.transpose(found)
    assert abs(slope(steps, variances) + WEAK_ORDERS[name]) < 0.15, variances
    assert variances[-1] < 0.01
    assert np.max(means) < 1e-9


NOISY = [Ddpm(), Ddim(eta=1.0), EulerMaruyama(), Edm(churn=4.0)]


@pytest.mark.parametrize("solver", NOISY)
def test_the_noise_of_a_step_is_fresh_normal_and_as_large_as_it_should_be(solver: Any) -> None:
    """Mean and variance of many samples are those of the affine steps, which no repeated noise would give."""
    process, count = EDM(), 4000
    grid = exact.grid("karras", process, 4)
    mean, variance = moments(affine(solver, process, grid)[0], 0.0, 80.0**2)
    denoiser = exact.perfect(process, gaussian(MEAN, STD))
    keys = jax.random.split(jax.random.key(5), count)
    pixels = np.ravel(jax.jit(lambda keys: sample(keys, denoiser, {}, (1, 1, 1), grid=grid, solver=solver))(keys))
    assert abs(np.mean(pixels) - mean) < 4 * np.sqrt(variance / count)
    assert abs(np.var(pixels) - variance) < 4 * variance * np.sqrt(2 / count)


@pytest.mark.parametrize(
    ("solver", "process"), [(Ddpm(), DDPM(variance="fixed_large")), (Ddim(eta=1.0), FLOW), (EulerMaruyama(), FLOW)]
)
def test_the_last_step_to_the_data_adds_no_noise_and_the_others_do(solver: Any, process: Process) -> None:
    twice = np.float32(np.concatenate([U, U]))
    for grid, still in ((np.asarray([[0.5, 0.0]]), True), (np.asarray([[0.5, 0.25]]), False)):
        end = exact.walk(solver, exact.perfect(process), grid, twice, np.float32(Z[:2]).reshape(1, 12, 2))
        assert np.array_equal(end[:6], end[6:]) == still


# --- two times


def mean_velocity(x: jax.Array, t: jax.Array, condition: Any, *, s: jax.Array | None = None) -> Any:
    """Of rectified flow on N(MEAN, STD^2): from t to s, where s is given, and else at t."""

    def deviation(t: jax.Array) -> jax.Array:
        return jnp.sqrt((1 - t) ** 2 * STD**2 + t**2)

    def end(t: jax.Array, s: jax.Array) -> jax.Array:
        gone = (expand(value, x) for value in (1 - t, deviation(t), 1 - s, deviation(s)))
        share, size, later_share, later_size = gone
        return later_share * MEAN + later_size / size * (x - share * MEAN)

    t = t / FLOW.time_scale
    if s is None:
        return -jax.jvp(lambda s: end(t, s), (t,), (-jnp.ones_like(t),))[1], {}
    s = s / FLOW.time_scale
    return (x - end(t, s)) / expand(t - s, x), {}


@pytest.mark.parametrize("solver", [Euler(), Ddim(), EulerMaruyama(eta=0.0)])
@pytest.mark.parametrize("steps", [1, 3])
def test_a_network_of_mean_velocities_is_exact_in_any_number_of_steps(solver: Any, steps: int) -> None:
    with jax.enable_x64(True):
        grid = exact.even(FLOW, steps, 0.97, 0.0)
        end = exact.walk(solver, NetworkDenoiser(FLOW, mean_velocity), grid, 0.97 * U)
    deviation = np.sqrt(0.03**2 * STD**2 + 0.97**2)
    np.testing.assert_allclose(end, MEAN + STD / deviation * (0.97 * U - 0.03 * MEAN), atol=1e-12)


@pytest.mark.parametrize("solver", [Ddim(eta=1.0), Ddpm(), EulerMaruyama(), Heun(), Midpoint(), DpmSolver(), Edm()])
def test_other_solvers_ask_for_the_velocity_at_one_time(solver: Any) -> None:
    def one_time(x: jax.Array, t: jax.Array, condition: Any, *, s: jax.Array | None = None) -> Any:
        assert s is None
        return x, {}

    exact.walk(solver, NetworkDenoiser(FLOW, one_time), exact.even(FLOW, 3, 0.9, 0.1), U)
