"""Laws of the table of conversions: every row leads to every other and back, along every path."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archirf_jax.processes.base import Process, expand
from archirf_jax.processes.conversions import TABLE, Path, convert, slope
from tests.processes.examples import every_clock, images

pytestmark = pytest.mark.usefixtures("float64")
X0 = images(64)
EPS: Any = np.random.default_rng(1).normal(size=X0.shape)
# Off the knots of -log abar, where no derivative is.
TIMES = np.linspace(0.0513, 0.9513, 64)


def along(process: Process) -> tuple[Path, jax.Array, jax.Array]:
    """The path at TIMES with derivatives from jax.grad, x there and dx/dt there."""

    def x(t: jax.Array) -> jax.Array:
        return process.noised(jnp.asarray(X0), jnp.asarray(EPS), t)

    t = jnp.asarray(TIMES)
    values = process.alpha(t), process.sigma(t)
    rates = jax.vmap(jax.grad(process.alpha))(t), jax.vmap(jax.grad(process.sigma))(t)
    return Path(*(expand(value, EPS) for value in (*values, *rates))), *jax.jvp(x, (t,), (jnp.ones(64),))


@every_clock
def test_every_row_leads_to_every_other_and_back(process: Process) -> None:
    path, x, _ = along(process)
    for source, target in itertools.product(TABLE, TABLE):
        value = TABLE[source].combine(path, X0, EPS)
        there = convert(source, target, path, value, x)
        np.testing.assert_allclose(there, TABLE[target].combine(path, X0, EPS), rtol=1e-8, atol=1e-8, err_msg=target)
        np.testing.assert_allclose(convert(target, source, path, there, x), value, rtol=1e-8, atol=1e-8)


@every_clock
def test_every_row_says_what_image_and_noise_are(process: Process) -> None:
    path, x, _ = along(process)
    for row in TABLE.values():
        x0, eps = row.separate(path, row.combine(path, X0, EPS), x)
        np.testing.assert_allclose(x0, X0, atol=1e-8)
        np.testing.assert_allclose(eps, EPS, atol=1e-8)


@every_clock
def test_the_velocity_is_the_derivative_of_x_along_the_path(process: Process) -> None:
    path, _, rate = along(process)
    np.testing.assert_allclose(TABLE["velocity"].combine(path, X0, EPS), rate, rtol=1e-10)


@every_clock
def test_the_score_is_the_gradient_of_the_log_density_of_x_given_the_image(process: Process) -> None:
    path, x, _ = along(process)

    def log_density(x: jax.Array) -> jax.Array:
        return jnp.sum(jax.scipy.stats.norm.logpdf(x, path.alpha * X0, path.sigma))

    np.testing.assert_allclose(TABLE["score"].combine(path, X0, EPS), jax.grad(log_density)(x), rtol=1e-8)


def test_v_of_a_path_on_the_circle_is_the_derivative_by_the_angle() -> None:
    """With alpha = cos(angle), sigma = sin(angle), v is dx / d angle (Salimans & Ho 2022, Appendix D)."""
    angle = jnp.linspace(0.1, 1.5, 64)

    def x(angle: jax.Array) -> jax.Array:
        return expand(jnp.cos(angle), EPS) * X0 + expand(jnp.sin(angle), EPS) * EPS

    cos, sin = expand(jnp.cos(angle), EPS), expand(jnp.sin(angle), EPS)
    _, rate = jax.jvp(x, (angle,), (jnp.ones(64),))
    np.testing.assert_allclose(TABLE["v"].combine(Path(cos, sin, -sin, cos), X0, EPS), rate, rtol=1e-10)


@pytest.mark.parametrize(("name", "expected"), [("x0", X0), ("eps", EPS), ("velocity", EPS - X0)])
def test_the_rows_of_a_line_are_image_noise_and_their_difference(name: str, expected: Any) -> None:
    t = jnp.full((64, 1, 1, 1), 0.3)
    path = Path(1 - t, t, -jnp.ones_like(t), jnp.ones_like(t))
    np.testing.assert_array_equal(TABLE[name].combine(path, jnp.asarray(X0), jnp.asarray(EPS)), expected)


@every_clock
def test_the_slope_is_how_much_a_conversion_changes_with_what_is_converted(process: Process) -> None:
    path, x, _ = along(process)
    for source, target in itertools.product(TABLE, TABLE):
        value = TABLE[source].combine(path, X0, EPS)
        moved = convert(source, target, path, value + 1, x) - convert(source, target, path, value, x)
        np.testing.assert_allclose(slope(source, target, path), jnp.abs(moved[..., :1, :1, :1]), rtol=1e-6)
        np.testing.assert_allclose(slope(source, target, path) * slope(target, source, path), 1, rtol=1e-9)


def test_the_divisor_of_a_slope_is_at_least_the_smallest() -> None:
    t = jnp.asarray([0.0, 0.05, 0.1, 0.5])
    path = Path(1 - t, t, -jnp.ones_like(t), jnp.ones_like(t))
    np.testing.assert_allclose(slope("x0", "velocity", path, 0.1), [10, 10, 10, 2])
    np.testing.assert_array_equal(slope("x0", "x0", path, 0.1), 1)
