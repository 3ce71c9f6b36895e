"""Solvers: agreement with the published algorithms, noise, two times, and refusals; `test_oracle` has orders and cost.

`exact` holds the closed forms. In flow coordinates, x / (alpha + sigma) over sigma / (alpha + sigma), every process
is a rectified flow, so a solver must go the same way for all of them.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archirf_jax import registry
from archirf_jax.errors import UserError
from archirf_jax.processes.base import Process
from archirf_jax.processes.ddpm import DDPM
from archirf_jax.processes.edm import EDM
from archirf_jax.processes.rectified_flow import RectifiedFlow
from archirf_jax.samplers import grids, solvers
from archirf_jax.samplers.denoisers import NetworkDenoiser
from archirf_jax.samplers.solvers.ddim import Ddim
from archirf_jax.samplers.solvers.ddpm import Ddpm
from archirf_jax.samplers.solvers.dpmpp_2m import DpmSolver
from archirf_jax.samplers.solvers.edm import Edm
from archirf_jax.samplers.solvers.euler import Euler
from archirf_jax.samplers.solvers.euler_maruyama import EulerMaruyama
from tests.samplers import exact

# Every solver and its order: of the error at the end, of the mean and variance at the end, or none of its own.
ORDERS = {"euler": 1, "ddim": 1, "heun": 2, "midpoint": 2, "dpmpp_2m": 2, "edm": 2}
WEAK_ORDERS = {"ddpm": 1, "euler_maruyama": 1}
ADAPTIVE = {"dopri5"}
THIRD = ("ddpm", "gvp", "vp", "gvp", "ddpm", "vp", "ddpm", "gvp")  # each solver's third process
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


@pytest.mark.parametrize(("name", "other"), [*zip([*ORDERS, *WEAK_ORDERS], THIRD, strict=True)])
def test_a_solver_goes_the_same_way_for_every_process(name: str, other: str) -> None:
    """In flow coordinates, to the last digits and with the same noise."""
    solver = make(name, **{"ddim": {"eta": 0.7}, "edm": {"churn": 2.0}}.get(name, {}))
    ends = {}
    with jax.enable_x64(True):
        for key in ("linear", "edm", other):
            process = exact.PROCESSES[key]
            grid = exact.even(process, 5, 0.9, 0.2)
            start, end = exact.scale(process, grid[0, 0]), exact.scale(process, grid[-1, 1])
            ends[key] = exact.walk(solver, exact.perfect(process), grid, start * 0.9 * U, Z[:5]) / end
    assert np.std(ends["linear"]) > 0.1
    for end in ends.values():
        np.testing.assert_allclose(end, ends["linear"], atol=1e-9)


# One step along the flow from pure noise leads to the mean of the data.
@pytest.mark.parametrize(
    ("name", "process"),
    [
        *((name, ZERO_SNR) for name in ("ddim", "ddpm", "heun", "dpmpp_2m", "edm", "euler_maruyama")),
        *(("euler", process) for process in (FLOW, RectifiedFlow(path="gvp", prediction="v"), ZERO_SNR)),
        ("edm", RectifiedFlow(prediction="x0")),
    ],
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


@pytest.mark.parametrize("process", [FLOW, DENOISING, EDM()])
def test_ddim_with_all_its_noise_is_ancestral_sampling(process: Process) -> None:
    with jax.enable_x64(True):
        grid = exact.grid("uniform", process, 5)
        ends = [exact.walk(solver, exact.perfect(process), grid, U, Z[:5]) for solver in (Ddim(eta=1.0), Ddpm())]
    np.testing.assert_allclose(*ends, atol=1e-10)


@pytest.mark.parametrize(("key", "eta"), [("linear", 0.4), ("vp", 1.0), ("ddpm", 0.4), ("edm", 1.0)])
def test_ddim_is_eulers_ancestral_step_over_noise_levels(key: str, eta: float) -> None:
    """On x / alpha: Euler's step to a lower level and fresh noise back to the next, of variances that add up to it."""
    process = exact.PROCESSES[key]
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


@pytest.mark.parametrize(
    ("solver", "process"), [(Ddim(eta=0.0), DENOISING), (Ddim(eta=0.0), EDM()), (EulerMaruyama(eta=0.0), FLOW)]
)
def test_without_noise_ddim_and_euler_maruyama_are_euler(solver: Any, process: Process) -> None:
    with jax.enable_x64(True):
        grid = exact.grid("uniform", process, 4)
        ends = [exact.walk(other, exact.perfect(process), grid, U, Z[:4]) for other in (solver, Euler())]
    np.testing.assert_allclose(*ends, atol=1e-10)


# --- EDM and DPM-Solver++, as in the papers


@pytest.mark.parametrize(
    ("process", "fields"),
    [
        (EDM(), {}),
        (RectifiedFlow(), {"churn": 1.0}),
        (EDM(), {"churn": 40.0, "churn_min": 0.05, "churn_max": 5.0, "churn_noise": 1.1}),
    ],
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


@pytest.mark.parametrize(("process", "churn"), [(FLOW, 40.0), (ZERO_SNR, 0.0)])
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
