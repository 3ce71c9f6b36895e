"""Laws of the distributions of training times: draws follow the published formulas, and densities follow the draws."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats

from archirf_jax.errors import UserError
from archirf_jax.objectives import times
from archirf_jax.objectives.times import CosMap, LogitNormal, Mode, Shifted, Uniform
from archirf_jax.processes.times import shift_time

SHIFTS = [0.1, 0.3, 1.0, 3.0, 7.3, 1000.0]
TIMES = np.linspace(0, 1, 101)
STEEPEST = 2 / (math.pi - 2)


def mode(scale: float) -> Callable[[Any], Any]:
    """SD3's Eq. 20 of 1 - p, as its times fall with u."""
    return lambda p: p - scale * (np.cos(np.pi / 2 * (1 - p)) ** 2 - p)


# Each distribution with its quantiles, written out from the paper.
CASES: dict[str, tuple[Any, Callable[[Any], Any]]] = {
    "uniform": (Uniform(), lambda p: p),
    "logit_normal": (LogitNormal(), lambda p: scipy.special.expit(scipy.special.ndtri(p))),
    "logit_normal_wide": (LogitNormal(-0.6, 1.6), lambda p: scipy.special.expit(-0.6 + 1.6 * scipy.special.ndtri(p))),
    **{f"mode_{scale}": (Mode(scale), mode(scale)) for scale in (1.29, 0.0, -0.5, -1.0, 1.75)},
    "mode_steepest": (Mode(STEEPEST), mode(STEEPEST)),
    "cosmap": (CosMap(), lambda p: 1 - 1 / (np.tan(np.pi / 2 * p) + 1)),
}
every_case = pytest.mark.parametrize("name", CASES)


def case(name: str, shift: float) -> tuple[Shifted, Callable[[Any], Any]]:
    """The shifted distribution and its quantiles."""
    distribution, quantile = CASES[name]
    return Shifted(distribution, shift), lambda p: shift * quantile(p) / (1 + (shift - 1) * quantile(p))


@pytest.mark.parametrize("shift", [1.0, 3.0])
@every_case
def test_times_follow_the_published_formula(name: str, shift: float) -> None:
    """The test of Kolmogorov and Smirnov, at 200 quantiles."""
    distribution, quantile = case(name, shift)
    t = np.sort(np.asarray(jax.jit(lambda key: distribution.sample(key, 20000))(jax.random.key(0)), np.float64))
    assert t[0] > 0 and t[-1] <= 1
    p = np.linspace(0.0025, 0.9975, 200)
    distance = np.max(np.abs(np.searchsorted(t, quantile(p)) / len(t) - p))
    assert scipy.stats.kstwobign.sf(distance * math.sqrt(len(t))) > 1e-3


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("shift", [1.0, 3.0])
@every_case
def test_the_density_adds_up_to_the_share_of_times_below_each_quantile(name: str, shift: float) -> None:
    """And so to 1 in the end; the pole that a steep mode has in its middle is an end of an interval."""
    distribution, quantile = case(name, shift)
    density = jax.jit(distribution.density)
    shares = np.array([0, 0.01, 0.2, 0.5, 0.7, 0.97, 1])
    ends = np.asarray(quantile(shares))
    np.testing.assert_allclose(ends[[0, -1]], [0, 1], atol=1e-12)
    parts = [
        scipy.integrate.quad(lambda t: float(density(jnp.asarray(t))), low, high, limit=200)[0]
        for low, high in zip(ends[:-1], ends[1:], strict=True)
    ]
    np.testing.assert_allclose(parts, np.diff(shares), rtol=1e-4)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@every_case
def test_densities_are_finite_in_single_precision_and_above_zero_where_times_are_drawn(name: str, shift: float) -> None:
    """At both ends and at poles too: a weight that is not finite would end a training."""
    distribution, _ = case(name, shift)
    ends = shift_time(jnp.asarray([0, 2.0**-24, 2.0**-23, 0.5, 1 - 2.0**-24, 1]), shift)
    density = jax.jit(lambda key: distribution.density(jnp.append(ends, distribution.sample(key, 1000))))(
        jax.random.key(0)
    )
    assert density.dtype == jnp.float32 and np.all(np.isfinite(density)) and np.all(density >= 0)
    assert np.all(density[len(ends) :] > 0)


@pytest.mark.usefixtures("float64")
@every_case
def test_densities_agree_in_single_and_double_precision(name: str) -> None:
    t = np.linspace(0.003, 0.997, 500, dtype=np.float32)  # off the poles of the extreme modes
    density = jax.jit(CASES[name][0].density)
    single, double = (density(jnp.asarray(t, dtype)) for dtype in (jnp.float32, jnp.float64))
    np.testing.assert_allclose(single, double, rtol=5e-3)


@pytest.mark.parametrize("u", [0.0, 2.0**-23, 1 - 2.0**-23])
@pytest.mark.parametrize("name", ["uniform", "mode_1.29", "mode_0.0", "mode_-1.0", "cosmap"])
def test_no_time_is_zero_whatever_number_is_drawn(name: str, u: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The velocity of a curved path is infinite there, and one in 2^23 uniform numbers is 0."""
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape: jnp.full(shape, u))
    t = CASES[name][0].sample(jax.random.key(0), 3)
    assert np.all(t > 0) and np.all(t <= 1)


@pytest.mark.parametrize(("mean", "std", "shift"), [(0.0, 1.0, 1.0), (-0.6, 1.6, 1.0), (0.5, 0.7, 3.0)])
def test_logit_normal_times_have_the_stated_logit_mean_and_deviation(mean: float, std: float, shift: float) -> None:
    t = np.asarray(Shifted(LogitNormal(mean, std), shift).sample(jax.random.key(0), 4000))
    logit = scipy.special.logit(t.astype(np.float64))
    # A shift multiplies the odds t / (1 - t), so it adds to their logarithm.
    assert scipy.stats.kstest((logit - mean - np.log(shift)) / std, "norm").pvalue > 1e-3


def test_times_of_the_cosine_map_have_the_signal_to_noise_ratio_of_the_cosine_schedule() -> None:
    t = np.asarray(CosMap().sample(jax.random.key(0), 4000), np.float64)
    angle = np.arctan(t / (1 - t))  # of the cosine schedule with the same sigma / alpha
    assert scipy.stats.kstest(angle / (np.pi / 2), "uniform").pvalue > 1e-3


def test_the_mode_is_heavy_in_the_middle_above_zero_and_at_the_ends_below() -> None:
    t = jnp.asarray([0.01, 0.5])
    ends, middle = Mode(1.29).density(t)
    assert middle > 2 > 1 > ends
    ends, middle = Mode(-0.5).density(t)
    assert middle < 1 < ends


@pytest.mark.parametrize("scale", [-1.001, STEEPEST + 0.001, float("nan")])
def test_a_mode_that_would_not_be_monotone_is_refused(scale: float) -> None:
    with pytest.raises(UserError) as caught:
        Mode(scale)
    assert caught.value.field == "objective.mode_scale" and caught.value.value is scale
    assert np.all(np.diff(mode(STEEPEST)(TIMES)) >= 0) and np.all(np.diff(mode(-1.0)(TIMES)) >= 0)
    assert times.MODE_SCALES == (-1, STEEPEST)


@pytest.mark.parametrize("shift", SHIFTS)
def test_the_shift_keeps_the_ends_and_the_order_of_times(shift: float) -> None:
    moved = shift_time(TIMES, shift)
    assert moved[0] == 0 and moved[-1] == 1
    assert np.all(np.diff(moved) > 0)
    single = np.asarray(shift_time(jnp.asarray(TIMES, jnp.float32), shift))
    assert single[0] == 0 and single[-1] == 1
    assert np.all((moved >= TIMES) if shift >= 1 else (moved <= TIMES))


@pytest.mark.parametrize("shift", SHIFTS)
def test_the_inverse_shift_takes_times_back(shift: float) -> None:
    np.testing.assert_allclose(shift_time(shift_time(TIMES, shift), 1 / shift), TIMES, atol=1e-12)


@pytest.mark.parametrize("shift", SHIFTS)
def test_the_shift_is_equation_23_of_sd3(shift: float) -> None:
    np.testing.assert_allclose(shift_time(TIMES, shift), shift * TIMES / (1 + (shift - 1) * TIMES), rtol=1e-12)
    assert np.all(shift_time(TIMES, 1.0) == TIMES)
