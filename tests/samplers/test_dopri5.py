"""Laws of the adaptive solver: its tolerances, and what it cannot solve."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archirf_jax.errors import UserError
from archirf_jax.processes.rectified_flow import RectifiedFlow
from archirf_jax.samplers.denoisers import Inpaint, NetworkDenoiser, StaticClip
from archirf_jax.samplers.guidance.adaptive_projected import AdaptiveProjected
from tests.samplers import exact

FLOW = RectifiedFlow()
U = np.random.default_rng(0).normal(size=(6, 2))


def make() -> Any:
    return pytest.importorskip("archirf_jax.samplers.solvers.dopri5").Dopri5()


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
    solver, grid, x = make(), exact.grid("uniform", FLOW, 1), jnp.zeros((1, *exact.SHAPE))
    guided = AdaptiveProjected(silent, {"label": np.int32(0)}, 2.0, momentum=-0.5)
    with pytest.raises(UserError) as caught:
        solver.init(StaticClip(guided), grid, x)
    assert caught.value.field == "sample.solver.name"
    solver.init(StaticClip(dataclasses.replace(guided, momentum=0.0)), grid, x)


def test_dopri5_refuses_known_pixels_that_differ_from_image_to_image() -> None:
    solver, many = make(), jnp.zeros((6, *exact.SHAPE))
    for known, refused in ((many, True), (many[0], False)):
        denoise = Inpaint(exact.perfect(FLOW), known, jnp.zeros(exact.SHAPE))

        def step(x: Any, denoise: Any = denoise) -> Any:
            return solver.step(many, denoise, x, 0.9, 0.1, {}, ())[0]

        if refused:
            with pytest.raises(UserError) as caught:
                jax.eval_shape(step, many)
            assert caught.value.field == "sample.solver.name"
        else:
            assert jax.eval_shape(step, many).shape == many.shape
