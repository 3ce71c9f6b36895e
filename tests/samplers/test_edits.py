"""Encoding and edits: round trips, closed forms, arcs, and that each edit is the sampling that it stands for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archirf_jax.errors import UserError
from archirf_jax.processes.base import Process
from archirf_jax.processes.oracles import gaussian, network
from archirf_jax.processes.rectified_flow import RectifiedFlow
from archirf_jax.samplers import edits
from archirf_jax.samplers.config import SamplerConfig
from archirf_jax.samplers.denoisers import NetworkDenoiser
from archirf_jax.samplers.edits import slerp
from archirf_jax.samplers.encode import encode
from archirf_jax.samplers.sample import noise, sample
from archirf_jax.samplers.solvers.ddim import Ddim
from archirf_jax.samplers.solvers.euler import Euler
from tests.samplers import exact

B, EULER = 5, Euler()
RANDOM = np.random.default_rng(0)
X0 = 0.5 * RANDOM.normal(size=(B, *exact.SHAPE))
KEYS = jax.random.split(jax.random.key(0), B)


def round_trip(
    process: Process, grid: np.ndarray, iterations: int, solver: Any = EULER
) -> tuple[np.ndarray, np.ndarray]:
    """The code of the images, and the images that a sampler makes of it."""

    def run(x0: jax.Array) -> tuple[jax.Array, jax.Array]:
        code = encode(exact.perfect(process), x0, {}, grid=grid, iterations=iterations)
        return code, sample(KEYS, exact.perfect(process), {}, exact.SHAPE, grid=grid, solver=solver, start=code)

    return jax.tree.map(np.asarray, jax.jit(run)(jnp.asarray(X0)))


@pytest.mark.parametrize(
    ("key", "name", "solver"),
    [
        ("linear", "uniform", EULER),
        ("gvp", "uniform", Ddim()),
        ("ddpm", "uniform", EULER),
        ("edm", "karras", EULER),
    ],
)
def test_an_encoded_image_comes_back(key: str, name: str, solver: Any) -> None:
    """From noise, by Euler's method or by DDIM without noise, which are the same."""
    process = exact.PROCESSES[key]
    grid = exact.grid(name, process, 20)
    code, back = round_trip(process, grid, 20, solver)
    np.testing.assert_allclose(back, X0, atol=1e-4)
    assert 0.3 < np.std(code / process.sigma(grid[0, 0])) < 3 and np.max(np.abs(code - X0)) > 0.3


def test_more_iterations_bring_an_image_back_more_exactly() -> None:
    """One is the usual approximation: the later state at the earlier time."""
    process = RectifiedFlow()
    with jax.enable_x64(True):
        grid = exact.even(process, 12, 0.97, 0.0)
        errors = [np.max(np.abs(round_trip(process, grid, n)[1] - X0)) for n in (1, 2, 4, 8)]
    assert errors[0] > 0.02
    assert all(later < 0.5 * earlier for earlier, later in zip(errors[:-1], errors[1:], strict=True)), errors
    assert errors[-1] < 1e-5


def test_one_iteration_is_the_velocity_of_the_later_state_at_the_earlier_time() -> None:
    process = RectifiedFlow()
    with jax.enable_x64(True):
        grid = exact.even(process, 3, 0.97, 0.0)
        x = X0.reshape(B, 2)
        for t, t_next in grid[::-1]:
            x0, eps = exact.denoise(x, 1 - t, t)
            x = x + (t - t_next) * (eps - x0)
        code = encode(exact.perfect(process), jnp.asarray(X0), {}, grid=grid, iterations=1)
    np.testing.assert_allclose(np.asarray(code).reshape(B, 2), x, atol=1e-9)


@pytest.mark.parametrize("key", ["linear", "edm"])
def test_a_code_converges_to_the_end_of_the_ode(key: str) -> None:
    process = exact.PROCESSES[key]
    with jax.enable_x64(True):
        truth, errors = exact.flow(X0.reshape(B, 2), 0.0, 0.9), []
        for steps in (16, 32):
            grid = exact.even(process, steps, 0.9, 0.0)
            code = jax.jit(lambda x, grid=grid: encode(exact.perfect(process), x, {}, grid=grid, iterations=12))(X0)
            z = np.asarray(code).reshape(B, 2) / exact.scale(process, grid[0, 0])
            errors.append(np.max(np.abs(z - truth)))
    assert errors[1] < 0.06 and 1.6 < errors[0] / errors[1] < 2.4, errors


def test_the_network_is_never_asked_about_the_data_itself() -> None:
    asked: list[float] = []
    process = RectifiedFlow()
    inner = network(process, gaussian(0.0, 0.5))

    def watched(x: jax.Array, t: jax.Array, condition: Any, *, s: Any = None) -> Any:
        asked.append(float(t[0]))
        return inner(x, t, condition)

    with jax.disable_jit():
        encode(
            NetworkDenoiser(process, watched), jnp.asarray(X0), {}, grid=exact.grid("uniform", process, 4), iterations=3
        )
    np.testing.assert_allclose(asked, np.repeat([250.0, 500.0, 750.0, 1000.0], 3), rtol=1e-6)


# --- ways between two noises


@pytest.fixture
def double() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def arc(first: Any, second: Any, weights: Any) -> np.ndarray:
    """(len(weights), ...) on the way between two images."""
    weights = jnp.asarray(weights)
    many = (jnp.broadcast_to(jnp.asarray(end), (len(weights), *np.shape(end))) for end in (first, second))
    return np.asarray(slerp(*many, weights))


FIRST, SECOND = RANDOM.normal(size=(2, 4, 5, 3))


@pytest.mark.usefixtures("double")
def test_a_way_begins_and_ends_at_its_two_noises() -> None:
    np.testing.assert_allclose(arc(FIRST, SECOND, [0.0, 1.0]), [FIRST, SECOND], atol=1e-12)


@pytest.mark.usefixtures("double")
def test_between_orthogonal_noises_of_one_length_the_length_stays_and_the_angle_is_even() -> None:
    across = SECOND - np.sum(SECOND * FIRST) / np.sum(FIRST**2) * FIRST
    across = across * np.linalg.norm(FIRST) / np.linalg.norm(across)
    weights = np.linspace(0, 1, 7)
    way = arc(FIRST, across, weights)
    np.testing.assert_allclose(np.sqrt(np.sum(way**2, axis=(1, 2, 3))), np.linalg.norm(FIRST), rtol=1e-12)
    angles = np.arctan2(np.sum(way * across, axis=(1, 2, 3)), np.sum(way * FIRST, axis=(1, 2, 3)))
    np.testing.assert_allclose(angles, weights * np.pi / 2, atol=1e-12)


@pytest.mark.usefixtures("double")
def test_the_way_is_shoemakes_also_between_noises_of_two_lengths() -> None:
    angle = np.arccos(np.sum(FIRST * 2 * SECOND) / np.linalg.norm(FIRST) / np.linalg.norm(2 * SECOND))
    expected = (np.sin(0.7 * angle) * FIRST + np.sin(0.3 * angle) * 2 * SECOND) / np.sin(angle)
    np.testing.assert_allclose(arc(FIRST, 2 * SECOND, [0.3])[0], expected, atol=1e-12)


def test_the_way_of_each_example_is_its_own() -> None:
    first, second = np.random.default_rng(1).normal(size=(2, 3, 2, 2, 1)).astype(np.float32)
    weights = np.asarray([0.2, 0.5, 0.9], np.float32)
    together = slerp(jnp.asarray(first), jnp.asarray(second), jnp.asarray(weights))
    for i in range(3):
        np.testing.assert_allclose(together[i], arc(first[i], second[i], weights[i : i + 1])[0], atol=1e-6)


@pytest.mark.parametrize("factor", [1.0, 2.5, -1.0, 0.0])
def test_between_parallel_noises_the_way_is_linear(factor: float) -> None:
    first = np.float32(FIRST)
    way = arc(first, np.float32(factor) * first, np.float32([0.0, 0.25, 1.0]))
    for weight, state in zip((0.0, 0.25, 1.0), way, strict=True):
        if factor:
            np.testing.assert_allclose(state, (1 - weight + weight * factor) * first, atol=1e-5)
        assert np.all(np.isfinite(state))


# --- edits

FLOW = RectifiedFlow()
GRID: Any = exact.grid("uniform", FLOW, 6)
HOW: Any = {"grid": GRID, "solver": EULER}
WEIGHTS: Any = np.linspace(0, 1, B).astype(np.float32)
IMAGE: Any = np.float32(X0[0])


def test_between_noises_the_ends_are_the_samples_of_both_keys() -> None:
    others, denoise = jax.random.split(jax.random.key(1), B), exact.perfect(FLOW)
    found = jax.jit(lambda w: edits.between_noises(KEYS, others, w, denoise, {}, exact.SHAPE, **HOW))(WEIGHTS)
    first, second = (sample(keys, denoise, {}, exact.SHAPE, **HOW) for keys in (KEYS, others))
    np.testing.assert_allclose(found[0], first[0], atol=1e-5)
    np.testing.assert_allclose(found[-1], second[-1], atol=1e-5)
    assert np.min(np.abs(found[2] - first[2])) > 1e-3


def test_between_images_the_ends_are_the_images() -> None:
    ends = np.float32(X0[:2])
    grid = exact.grid("uniform", FLOW, 40)
    found = jax.jit(
        lambda images: edits.between_images(KEYS, images, WEIGHTS, exact.perfect(FLOW), {}, grid=grid, solver=EULER)
    )(ends)
    np.testing.assert_allclose(found[0], ends[0], atol=5e-3)
    np.testing.assert_allclose(found[-1], ends[1], atol=5e-3)


def test_from_an_image_sampling_starts_at_the_image_noised_to_the_strength() -> None:
    late, denoise = GRID[3:], exact.perfect(FLOW)
    states = edits.from_image(KEYS, IMAGE, denoise, {}, exact.SHAPE, grid=late, solver=EULER, stride=1)
    np.testing.assert_allclose(states[0], 0.5 * IMAGE + 0.5 * noise(KEYS, exact.SHAPE), atol=1e-6)
    expected = sample(KEYS, denoise, {}, exact.SHAPE, grid=late, solver=EULER, start=states[0])
    np.testing.assert_array_equal(states[-1], expected)


def test_filling_a_hole_keeps_what_is_known() -> None:
    mask = np.asarray([0.0, 1.0]).reshape(exact.SHAPE)
    found = jax.jit(lambda keys: edits.fill(keys, IMAGE, mask, exact.perfect(FLOW), {}, exact.SHAPE, **HOW))(KEYS)
    np.testing.assert_allclose(found[:, :, 0], np.broadcast_to(IMAGE[:, 0], found[:, :, 0].shape), atol=1e-5)
    assert np.std(found[:, :, 1]) > 0.1


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"solver": "heun"}, "sample.solver.name"),
        ({"solver": "ddim", "eta": 0.5}, "sample.solver.eta"),
        ({"guidance_scale": 2.0}, "sample.guidance.scale"),
        ({"threshold": "static"}, "sample.threshold"),
    ],
)
def test_images_are_not_encoded_with_noise_guidance_or_threshold(fields: dict[str, Any], field: str) -> None:
    edits.check_encodes(SamplerConfig().replace(solver="ddim", eta=0.0))
    with pytest.raises(UserError) as caught:
        edits.check_encodes(SamplerConfig().replace(**fields))
    assert caught.value.field == field
