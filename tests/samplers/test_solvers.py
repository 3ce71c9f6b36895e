"""Solvers: agreement with the published algorithms, noise, two times, and refusals; `test_oracle` has orders and cost.

`exact` holds the closed forms. In flow coordinates, x / (alpha + sigma) over sigma / (alpha + sigma), every process
is a rectified flow, so a solver must go the same way for all of them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archirf_jax import registry
from archirf_jax.errors import UserError
from archirf_jax.processes.base import Process, expand
from archirf_jax.processes.ddpm import DDPM
from archirf_jax.processes.edm import EDM
from archirf_jax.processes.oracles import gaussian
from archirf_jax.processes.rectified_flow import RectifiedFlow
from archirf_jax.samplers import grids, solvers
from archirf_jax.samplers.denoisers import Inpaint, NetworkDenoiser, StaticClip
from archirf_jax.samplers.guidance.adaptive_projected import AdaptiveProjected
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

# Every solver and its order: of the error at the end, of the mean and variance at the end, or none of its own.
ORDERS = {"euler": 1, "ddim": 1, "heun": 2, "midpoint": 2, "dpmpp_2m": 2, "edm": 2}
WEAK_ORDERS = {"ddpm": 1, "euler_maruyama": 1}
ADAPTIVE = {"dopri5"}
ZERO_SNR = DDPM(prediction="v", zero_terminal_snr=True)
FLOW, DENOISING = RectifiedFlow(), DDPM(variance="fixed_small")
RANDOM = np.random.default_rng(0)
U = RANDOM.normal(size=(6, 2))
Z = RANDOM.normal(size=(16, 6, 2))


def make(name: str, **fields: Any) -> Any:
    if name in ADAPTIVE:
        pytest.importorskip("diffrax")
    return registry.build(solvers, "sample.solver.name", name, fields)


def slope(steps: Any, values: Any) -> float:
    return float(np.polyfit(np.log(steps), np.log(values), 1)[0])


def test_every_solver_has_its_order_tested() -> None:
    assert set(registry.names(solvers)) == {*ORDERS, *WEAK_ORDERS, *ADAPTIVE}


@pytest.mark.parametrize("name", [*ORDERS, *WEAK_ORDERS])
def test_a_solver_goes_the_same_way_for_every_process(name: str) -> None:
    """In flow coordinates, to the last digits and with the same noise."""
    solver = make(name, **{"ddim": {"eta": 0.7}, "edm": {"churn": 2.0}}.get(name, {}))
    ends = {}
    with jax.enable_x64(True):
        for key, process in exact.PROCESSES.items():
            grid = exact.even(process, 5, 0.9, 0.2)
            start, end = exact.scale(process, grid[0, 0]), exact.scale(process, grid[-1, 1])
            ends[key] = exact.walk(solver, exact.perfect(process), grid, start * 0.9 * U, Z[:5]) / end
    assert np.std(ends["linear"]) > 0.1
    for end in ends.values():
        np.testing.assert_allclose(end, ends["linear"], atol=1e-9)


# One step along the flow from pure noise leads to the mean of the data.
@pytest.mark.parametrize("name", ["euler", "ddim", "ddpm", "heun", "dpmpp_2m", "edm", "euler_maruyama"])
@pytest.mark.parametrize(
    "process", [FLOW, RectifiedFlow(path="gvp", prediction="v"), RectifiedFlow(prediction="x0"), ZERO_SNR]
)
def test_one_step_from_pure_noise_leads_to_the_mean_of_the_data(name: str, process: Process) -> None:
    one, many = exact.grid("uniform", process, 1), exact.grid("uniform", process, 6)
    mean = exact.WEIGHTS @ exact.MEANS
    x = np.float32(U)
    np.testing.assert_allclose(
        exact.walk(make(name), exact.perfect(process), one, x, np.float32(Z[:1])),
        np.broadcast_to(mean, U.shape),
        atol=1e-5,
    )
    assert np.all(np.isfinite(exact.walk(make(name), exact.perfect(process), many, x, np.float32(Z[:6]))))


def test_euler_adds_the_velocity_times_the_step() -> None:
    @exact.answers
    def velocity(x: jax.Array, t: jax.Array, y: Any) -> jax.Array:
        return jnp.sin(3 * x) + t[:, None, None, None] / 1000

    with jax.enable_x64(True):
        x = U
        grid = exact.grid("shifted", FLOW, 4, shift=3.0)
        for t, t_next in grid:
            x = x + (t_next - t) * (np.sin(3 * x) + t)
        np.testing.assert_allclose(exact.walk(Euler(), NetworkDenoiser(FLOW, velocity), grid, U), x, atol=1e-12)


# --- denoising diffusion, as in the papers

BETAS = np.linspace(1e-4, 0.02, 1000)
ABAR = np.cumprod(1 - BETAS)


def odd(x: Any) -> Any:
    """The noise that the network below predicts."""
    return 0.3 + 0.8 * x - 0.1 * x**2


def denoising(**fields: Any) -> NetworkDenoiser:
    """It predicts the noise `odd`, and a variance 0.7 of the way from the smallest to the largest."""
    process = DDPM(**fields)

    @exact.answers
    def model_fn(x: jax.Array, t: jax.Array, y: Any) -> jax.Array:
        more = process.output_channels(1) - 1
        return jnp.concatenate([odd(x), jnp.full((*x.shape[:-1], more), 0.4)], axis=-1)

    return NetworkDenoiser(process, model_fn)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned_range"])
def test_ddpm_is_algorithm_2_of_ho_et_al(variance: str) -> None:
    """From step to neighbouring step, with the posterior's variance, beta, or what lies between (their Eq. 15)."""
    visited = [999, 998, 997]
    low = [2, 1, 0]
    with jax.enable_x64(True):
        for places in (visited, low):
            x = U
            for k, z in zip(places, Z, strict=False):
                small = BETAS[k] * (1 - ABAR[k - 1]) / (1 - ABAR[k]) if k else 0.0
                noise = {"fixed_small": small, "fixed_large": BETAS[k], "learned_range": BETAS[k] ** 0.7 * small**0.3}
                x = (x - BETAS[k] / np.sqrt(1 - ABAR[k]) * odd(x)) / np.sqrt(1 - BETAS[k])
                x = x + np.sqrt(noise[variance]) * z * (k > 0)
            grid = np.asarray([[(k + 1) / 1000, k / 1000] for k in places])
            end = exact.walk(Ddpm(), denoising(variance=variance), grid, U, Z[: len(places)])
            np.testing.assert_allclose(end, x, atol=1e-9)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_ddim_is_equations_12_and_16_of_song_et_al(eta: float) -> None:
    visited = [950, 600, 250, 20]
    with jax.enable_x64(True):
        x, grid = U, []
        for k, s, z in zip(visited, [*visited[1:], -1], Z, strict=False):
            before = ABAR[s] if s >= 0 else 1.0
            deviation = eta * np.sqrt((1 - before) / (1 - ABAR[k])) * np.sqrt(1 - ABAR[k] / before)
            eps = odd(x)
            x0 = (x - np.sqrt(1 - ABAR[k]) * eps) / np.sqrt(ABAR[k])
            x = np.sqrt(before) * x0 + np.sqrt(1 - before - deviation**2) * eps + deviation * z
            grid.append([(k + 1) / 1000, (s + 1) / 1000])
        np.testing.assert_allclose(exact.walk(Ddim(eta=eta), denoising(), np.asarray(grid), U, Z[:4]), x, atol=1e-9)


@pytest.mark.parametrize("process", exact.PROCESSES.values(), ids=exact.PROCESSES)
def test_ddim_with_all_its_noise_is_ancestral_sampling(process: Process) -> None:
    with jax.enable_x64(True):
        grid = exact.grid("uniform", process, 5)
        ends = [exact.walk(solver, exact.perfect(process), grid, U, Z[:5]) for solver in (Ddim(eta=1.0), Ddpm())]
    np.testing.assert_allclose(*ends, atol=1e-10)


@pytest.mark.parametrize("eta", [0.4, 1.0])
@pytest.mark.parametrize("process", exact.PROCESSES.values(), ids=exact.PROCESSES)
def test_ddim_is_eulers_ancestral_step_over_noise_levels(process: Process, eta: float) -> None:
    """On x / alpha: Euler's step to a lower level and fresh noise back to the next, of variances that add up to it."""
    with jax.enable_x64(True):
        grid = exact.even(process, 5, 0.95, 0.0)
        levels = np.append(process.ratio(grid[:, 0]), 0.0)
        x = levels[0] * U
        for level, after, z in zip(levels[:-1], levels[1:], Z, strict=False):
            up = eta * after * np.sqrt(1 - (after / level) ** 2)
            x0 = exact.denoise(x, 1.0, level)[0]
            x = x0 + (x - x0) / level * np.sqrt(after**2 - up**2) + up * z
        start = float(process.alpha(grid[0, 0])) * levels[0] * U
        end = exact.walk(Ddim(eta=eta), exact.perfect(process), grid, start, Z[:5])
    np.testing.assert_allclose(end, x, atol=1e-8)


@pytest.mark.parametrize("solver", [Ddim(eta=0.0), EulerMaruyama(eta=0.0)])
@pytest.mark.parametrize("process", [FLOW, DENOISING, EDM()])
def test_without_noise_ddim_and_euler_maruyama_are_euler(solver: Any, process: Process) -> None:
    with jax.enable_x64(True):
        grid = exact.grid("uniform", process, 4)
        ends = [exact.walk(other, exact.perfect(process), grid, U, Z[:4]) for other in (solver, Euler())]
    np.testing.assert_allclose(*ends, atol=1e-10)


# --- EDM and DPM-Solver++, as in the papers


@pytest.mark.parametrize("process", [EDM(), RectifiedFlow()])
@pytest.mark.parametrize(
    "fields", [{}, {"churn": 1.0}, {"churn": 40.0, "churn_min": 0.05, "churn_max": 5.0, "churn_noise": 1.1}]
)
def test_edm_is_algorithm_2_of_karras_et_al(process: Process, fields: dict[str, float]) -> None:
    churn, low = fields.get("churn", 0.0), fields.get("churn_min", 0.0)
    high, size = fields.get("churn_max", np.inf), fields.get("churn_noise", 1.0)
    n = 6
    ramp = np.arange(n) / (n - 1)
    sigmas = np.append((80 ** (1 / 7) + ramp * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7, 0.0)
    x = sigmas[0] * U
    for i, (sigma, sigma_next) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
        gamma = min(churn / n, np.sqrt(2) - 1) if low <= sigma <= high else 0.0
        risen = sigma * (1 + gamma)
        x = x + size * np.sqrt(risen**2 - sigma**2) * Z[i]
        d = (x - exact.denoise(x, 1.0, risen)[0]) / risen
        guess = x + (sigma_next - risen) * d
        if sigma_next > 0:
            d = (d + (guess - exact.denoise(guess, 1.0, sigma_next)[0]) / sigma_next) / 2
        x = x + (sigma_next - risen) * d
    with jax.enable_x64(True):
        grid = exact.grid("karras", process, n)
        start = float(process.alpha(grid[0, 0])) * sigmas[0] * U
        end = exact.walk(Edm(**fields), exact.perfect(process), grid, start, Z[:n])
    np.testing.assert_allclose(end, x, atol=1e-7)


@pytest.mark.parametrize("process", [DENOISING, FLOW])
def test_dpmpp_2m_is_algorithm_2_of_lu_et_al(process: Process) -> None:
    """The first step has nothing to look back at; the last has lambda = infinity: both are of first order."""
    with jax.enable_x64(True):
        grid = exact.even(process, 7, 0.95, 0.0)
        times = np.append(grid[:, 0], 0.0)
        alpha, sigma = process.alpha(times), process.sigma(times)
        lambdas = np.log(alpha[:-1]) - np.log(sigma[:-1])
        x, images = sigma[0] * U, []
        for i in range(7):
            images.append(exact.denoise(x, alpha[i], sigma[i])[0])
            if i == 6:
                x = images[-1]
                continue
            h, d = lambdas[i + 1] - lambdas[i], images[-1]
            if i:
                r = (lambdas[i] - lambdas[i - 1]) / h
                d = (1 + 1 / (2 * r)) * images[-1] - 1 / (2 * r) * images[-2]
            x = sigma[i + 1] / sigma[i] * x - alpha[i + 1] * (np.exp(-h) - 1) * d
        end = exact.walk(DpmSolver(), exact.perfect(process), grid, sigma[0] * U)
    np.testing.assert_allclose(end, x, atol=1e-9)


# --- noise

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


@pytest.mark.parametrize("solver", NOISY[:3])
@pytest.mark.parametrize("process", [FLOW, DDPM(variance="fixed_large")])
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


# --- steps that do not fit


@pytest.mark.parametrize("name", ["heun", "midpoint", "dpmpp_2m", "euler_maruyama", "edm", "dopri5"])
def test_solvers_that_need_steps_that_fit_together_refuse_others(name: str) -> None:
    grid = exact.grid("archirf", FLOW, 5)
    with pytest.raises(UserError) as caught:
        make(name).init(exact.perfect(FLOW), grid, jnp.zeros((1, *exact.SHAPE)))
    assert caught.value.field == "sample.solver.name"


@pytest.mark.parametrize("solver", [Ddpm(), Ddim(eta=0.5)])
def test_solvers_that_add_noise_refuse_to_go_beyond_the_data(solver: Any) -> None:
    with pytest.raises(UserError) as caught:
        solver.init(exact.perfect(FLOW), exact.grid("archirf", FLOW, 5), jnp.zeros((1, *exact.SHAPE)))
    assert caught.value.field == "sample.solver.name"
    solver.init(exact.perfect(DENOISING), exact.grid("archirf", DENOISING, 5), jnp.zeros((1, *exact.SHAPE)))


@exact.answers
def clock(x: jax.Array, t: jax.Array, y: Any) -> jax.Array:
    """The time, as a velocity."""
    return jnp.ones_like(x) * t[:, None, None, None] / 1000


@pytest.mark.parametrize("solver", [Euler(), Ddim()])
def test_on_the_original_grid_flows_take_steps_of_one_nth_at_times_that_run_ahead(solver: Any) -> None:
    with jax.enable_x64(True):
        end = exact.walk(solver, NetworkDenoiser(FLOW, clock), exact.grid("archirf", FLOW, 5), U)
        np.testing.assert_allclose(end, U - np.sum(np.linspace(1, 0, 5)) / 5, atol=1e-12)


@pytest.mark.parametrize("churn", [0.0, 40.0])
@pytest.mark.parametrize("process", [FLOW, ZERO_SNR])
def test_edms_step_from_pure_noise_is_eulers(process: Process, churn: float) -> None:
    with jax.enable_x64(True):
        grid = exact.grid("uniform", process, 5)[:1]
        ends = [exact.walk(solver, exact.perfect(process), grid, U, Z[:1]) for solver in (Edm(churn=churn), Euler())]
    np.testing.assert_allclose(*ends, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in registry.names(grids) if name != "base"])
def test_every_grid_leads_from_a_zero_snr_to_the_data(name: str) -> None:
    fields = {"image_seq_len": 1024} if name == "dynamic_shift" else {}
    grid = exact.grid("5" if name == "respaced" else name, ZERO_SNR, 5, **fields)
    assert (grid[0, 0] == 1) == (name not in ("leading", "archirf"))
    for t, t_next in grid[:2]:
        x = exact.walk(DpmSolver(), exact.perfect(ZERO_SNR), np.asarray([[t, t_next]]), np.float32(U))
        assert np.all(np.isfinite(x))


# --- the adaptive solver


@functools.cache
def adaptive(key: str) -> Callable[..., np.ndarray]:
    """Flow coordinates (6, 2) at time t, carried by dopri5 to t_next; compiled once a process."""
    solvers_dopri5 = pytest.importorskip("archirf_jax.samplers.solvers.dopri5")
    process = exact.PROCESSES[key]

    @jax.jit
    def step(x: Any, t: Any, t_next: Any, tolerance: Any, last: Any) -> Any:
        solver = solvers_dopri5.Dopri5(tolerance, tolerance, last)
        return solver.step(jnp.zeros_like(x), exact.perfect(process), x, t, t_next, {}, ())[0]

    def carry(x: Any, tau: float, tau_next: float, tolerance: float, last: float = 1e-4) -> np.ndarray:
        t, t_next = exact.even(process, 1, tau, tau_next)[0] if tau < 1 else (tau, tau_next)
        images = (exact.scale(process, t) * x).reshape(-1, *exact.SHAPE)
        return np.asarray(step(images, t, t_next, tolerance, last)).reshape(x.shape) / exact.scale(process, t_next)

    return carry


def test_dopri5_is_as_exact_as_its_tolerances() -> None:
    with jax.enable_x64(True):
        truth = exact.flow(0.97 * U, 0.97, 0.0)
        coarse, middle, fine = (
            np.max(np.abs(adaptive("linear")(0.97 * U, 0.97, 0.0, tolerance, last) - truth))
            for tolerance, last in ((1e-3, 1e-2), (1e-5, 1e-3), (1e-7, 1e-4))
        )
    assert fine < 1e-6 < middle < 1e-3 < coarse < 0.05


def test_dopri5_may_stop_on_the_way_and_start_from_pure_noise() -> None:
    with jax.enable_x64(True):
        go = adaptive("linear")
        np.testing.assert_allclose(go(go(U, 1.0, 0.6, 1e-8), 0.6, 0.1, 1e-8), exact.flow(U, 1 - 1e-12, 0.1), atol=1e-6)


def test_dopri5_goes_the_same_way_for_every_process() -> None:
    with jax.enable_x64(True):
        ends = [adaptive(key)(0.9 * U, 0.9, 0.2, 1e-6) for key in ("linear", "edm")]
    np.testing.assert_allclose(*ends, atol=1e-9)


def test_dopri5_chooses_the_steps_of_an_image_by_this_image_alone() -> None:
    others = np.concatenate([U[:1], 3 * U[1:]])
    with jax.enable_x64(True):
        one, other = (adaptive("linear")(0.97 * u, 0.97, 0.1, 1e-3) for u in (U, others))
    np.testing.assert_allclose(one[:1], other[:1], atol=1e-12)


silent = NetworkDenoiser(FLOW, exact.answers(lambda x, t, y: jnp.zeros_like(x)))


def test_dopri5_refuses_a_denoiser_with_state() -> None:
    solver, grid, x = make("dopri5"), exact.grid("uniform", FLOW, 1), jnp.zeros((1, *exact.SHAPE))
    guided = AdaptiveProjected(silent, {"label": np.int32(0)}, 2.0, momentum=-0.5)
    with pytest.raises(UserError) as caught:
        solver.init(StaticClip(guided), grid, x)
    assert caught.value.field == "sample.solver.name"
    solver.init(StaticClip(dataclasses.replace(guided, momentum=0.0)), grid, x)


def test_dopri5_refuses_known_pixels_that_differ_from_image_to_image() -> None:
    solver, many = make("dopri5"), jnp.zeros((6, *exact.SHAPE))
    for known, refused in ((many, True), (many[0], False)):
        denoise = Inpaint(exact.perfect(FLOW), known, jnp.zeros(exact.SHAPE))
        step = jax.jit(lambda x, denoise=denoise: solver.step(many, denoise, x, 0.9, 0.1, {}, ())[0])
        if refused:
            with pytest.raises(UserError) as caught:
                step(many)
            assert caught.value.field == "sample.solver.name"
        else:
            assert np.all(np.isfinite(step(many)))
