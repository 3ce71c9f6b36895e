"""Likelihoods: the closed form of a mixture, honest errors, and bits that are those of a known distribution."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from archirf_jax.errors import UserError
from archirf_jax.processes.base import Process
from archirf_jax.processes.edm import EDM
from archirf_jax.processes.oracles import Mixture
from archirf_jax.processes.rectified_flow import RectifiedFlow
from archirf_jax.samplers import grids
from archirf_jax.samplers.likelihood import Likelihood, bits_per_dim, log_density
from tests.samplers import exact

FLOW = RectifiedFlow()
B = 8
KEYS = jax.random.split(jax.random.key(0), B)
RANDOM = np.random.default_rng(0)
X0 = 0.5 * RANDOM.normal(size=(B, 2))
NOISE = RANDOM.normal(size=(B, 2))


@pytest.fixture(autouse=True)
def double_precision() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def down_to(process: Process, steps: int, last: float) -> np.ndarray:
    """Even steps in flow time from the process's own prior to `last`."""
    tau = np.linspace(float(process.flow_time(np.asarray(1.0))), last, steps + 1)
    inside = np.where(tau < 1, tau, 0.5)
    times = np.where(tau < 1, process.time_of_ratio(inside / (1 - inside)), 1.0)
    return grids.pairs(times)


def measured(process: Process, grid: np.ndarray, probes: int | None = None, keys: Any = KEYS) -> tuple[Likelihood, Any]:
    """The log-densities of noised images at the end of the grid, and the truth."""
    alpha, sigma = process.alpha(grid[-1, 1]), process.sigma(grid[-1, 1])
    x = alpha * X0 + sigma * NOISE
    denoise = exact.perfect(process)
    run = jax.jit(lambda keys, x: log_density(keys, denoise, x, {}, grid=grid, probes=probes))
    images = jnp.asarray(x[: len(keys)].reshape(-1, *exact.SHAPE))
    return jax.tree.map(np.asarray, run(keys, images)), exact.log_prob(x, alpha, sigma)[: len(keys)]


# Where the process does not end in noise alone, the prior is a little wrong, as it is in sampling.
@pytest.mark.parametrize(("key", "mismatch"), [("gvp", 0.0), ("ddpm", 3e-3), ("edm", 5e-3)])
def test_the_exact_trace_gives_the_density_of_a_mixture_within_its_step_error(key: str, mismatch: float) -> None:
    process = exact.PROCESSES[key]
    found, truth = measured(process, down_to(process, 32, 0.1))
    assert np.all(np.abs(found.value - truth) < 1.2 * found.step_error + mismatch)
    assert np.max(found.step_error) < 1e-3 and np.std(truth) > 0.5
    assert np.all(found.standard_error == 0)


def test_the_error_falls_with_the_square_of_the_steps_and_is_known() -> None:
    errors = []
    for steps in (16, 32):
        found, truth = measured(FLOW, down_to(FLOW, steps, 0.1))
        errors.append(np.max(np.abs(found.value - truth)))
        assert np.all(np.abs(np.abs(found.value - truth) / found.step_error - 1) < 0.4)
    assert 3.4 < errors[0] / errors[1] < 4.6


def test_the_estimated_trace_is_right_within_its_standard_error() -> None:
    """For each image within four, and over images as often wrong as it says."""
    grid = down_to(FLOW, 16, 0.1)
    exactly, _ = measured(FLOW, grid)
    keys = jax.random.split(jax.random.key(1), 32 * B).reshape(32, B)
    denoise = exact.perfect(FLOW)
    x = jnp.asarray(((1 - 0.1) * X0 + 0.1 * NOISE).reshape(-1, *exact.SHAPE))
    run = jax.jit(jax.vmap(lambda keys: log_density(keys, denoise, x, {}, grid=grid, probes=9)))
    found = jax.tree.map(np.asarray, run(keys))
    deviations = (found.value - exactly.value) / found.standard_error
    assert np.abs(np.mean(found.value, 0) - exactly.value).max() < 4 * np.max(found.standard_error) / np.sqrt(32)
    spread = np.sqrt(np.mean((found.value - exactly.value) ** 2, axis=0))
    np.testing.assert_allclose(np.sqrt(np.mean(found.standard_error**2, axis=0)), spread, rtol=0.4)
    assert np.mean(np.abs(deviations) < 4) > 0.95


def test_one_probe_has_no_standard_error_and_each_image_its_own() -> None:
    grid = down_to(FLOW, 4, 0.1)
    one, _ = measured(FLOW, grid, probes=1)
    assert np.all(np.isnan(one.standard_error)) and np.all(np.isfinite(one.value)) and np.all(one.step_error > 0)
    alone, _ = measured(FLOW, grid, probes=1, keys=KEYS[:1])
    np.testing.assert_allclose(alone.value, one.value[:1], atol=1e-12)


def test_what_lies_between_the_probes_of_two_images_is_not_mixed() -> None:
    """Signs of +1 and -1 cancel in the diagonal: for pixels that do not meet, one probe is exact."""
    apart = Mixture(exact.DATA.means[:1], exact.STDS[:1], np.ones(1))
    grid, x = down_to(FLOW, 8, 0.1), jnp.asarray(X0.reshape(-1, *exact.SHAPE))
    denoise = exact.perfect(FLOW, apart)
    one, all_of_them = (
        jax.jit(lambda x, n=n: log_density(KEYS, denoise, x, {}, grid=grid, probes=n))(x).value for n in (1, None)
    )
    np.testing.assert_allclose(one, all_of_them, atol=1e-10)


# --- bits

LEVELS = np.asarray([-1, -1 / 3, 1 / 3, 1])
SHARES = np.asarray([0.1, 0.2, 0.3, 0.4])
IMAGES = np.stack(np.meshgrid(LEVELS, LEVELS, indexing="ij"), axis=-1).reshape(16, 2)
WEIGHTS = np.outer(SHARES, SHARES).ravel()


@pytest.mark.parametrize("process", [FLOW, EDM()])
def test_an_image_that_alone_exists_needs_the_bits_that_the_cut_of_the_noise_costs(process: Process) -> None:
    """Minus the logarithm of the share of the noise within half a level."""
    ratio = 0.3
    image = np.asarray([1 / 3, -1.0]).reshape(1, *exact.SHAPE)
    denoise = exact.perfect(process, Mixture(image, np.zeros(1), np.ones(1)))
    x0, grid = jnp.broadcast_to(image, (B, *exact.SHAPE)), down_to(process, 64, ratio / (1 + ratio))
    run = jax.jit(lambda x0: bits_per_dim(KEYS, denoise, x0, {}, grid=grid, probes=2, levels=4))
    found, share = run(x0), scipy.special.erf(1 / 3 / ratio / np.sqrt(2))
    assert np.max(found.step_error) < 2e-3
    wrong_prior = 0.0 if process is FLOW else 0.05
    np.testing.assert_allclose(found.value, -np.log2(share), atol=1.2 * np.max(found.step_error) + wrong_prior)


@pytest.mark.parametrize(("process", "tolerance"), [(FLOW, 4e-3), (EDM(), 0.02)])
def test_the_bits_of_an_image_are_those_of_its_probability(process: Process, tolerance: float) -> None:
    """Two pixels of four levels, drawn apart; in the mean it is the entropy, and the bound holds."""
    denoise = exact.perfect(process, Mixture(IMAGES.reshape(16, *exact.SHAPE), np.zeros(16), WEIGHTS))
    grid = down_to(process, 128, 0.1 / (1 + 0.1))
    keys, x0 = jax.random.split(jax.random.key(2), 16), jnp.asarray(IMAGES.reshape(16, *exact.SHAPE))
    run = jax.jit(lambda k: bits_per_dim(k, denoise, x0, {}, grid=grid, probes=None, levels=4))
    found = run(keys)
    excess = np.asarray(found.value) + np.log2(WEIGHTS) / 2
    assert np.all(np.abs(excess) < tolerance + 2 * np.asarray(found.step_error))
    assert abs(np.sum(WEIGHTS * excess)) < tolerance
    assert np.sum(WEIGHTS * found.value) > -np.sum(SHARES * np.log2(SHARES))


def test_a_wrong_model_needs_more_bits() -> None:
    """By the divergence of the true distribution from that of the model, in bits."""
    wrong = Mixture(IMAGES.reshape(16, *exact.SHAPE), np.zeros(16), np.full(16, 1 / 16))
    denoise, grid = exact.perfect(FLOW, wrong), down_to(FLOW, 64, 0.1)
    x0 = jnp.asarray(IMAGES.reshape(16, *exact.SHAPE))
    keys = jax.random.split(jax.random.key(3), 16)
    found = jax.jit(lambda x0: bits_per_dim(keys, denoise, x0, {}, grid=grid, levels=4, probes=2))(x0)
    assert abs(np.sum(WEIGHTS * found.value) - 2) < 0.03


@pytest.mark.parametrize(
    "grid", [down_to(FLOW, 3, 0.1), exact.grid("uniform", FLOW, 4), exact.grid("archirf", FLOW, 4)]
)
def test_a_grid_that_cannot_be_integrated_over_is_refused(grid: np.ndarray) -> None:
    with pytest.raises(UserError) as caught:
        measured(FLOW, grid)
    assert caught.value.field == "grid"


def test_a_start_at_which_the_network_means_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="starts at t=1"):
        measured(RectifiedFlow(prediction="eps"), down_to(FLOW, 4, 0.1))
