"""Power-function averages: their profile, and that what snapshots make is what would have been kept all along."""

from __future__ import annotations

import math
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archirf_jax.errors import UserError
from archirf_jax.training import power_ema
from archirf_jax.training.power_ema import WIDEST, Snapshot, coefficients, mismatch, reconstruct

WIDTHS = (0.05, 0.10)  # of stored averages
STEPS, EVERY = 2_000, 100
TIMES = np.repeat(np.arange(EVERY, STEPS + 1, EVERY), len(WIDTHS))
STDS = np.tile(WIDTHS, STEPS // EVERY)


def profile(std: float, time: float, tau: np.ndarray) -> np.ndarray:
    """Of an average, by its definition."""
    gamma = power_ema.exponent(std)
    return np.where(tau <= time, (gamma + 1) / time * (np.minimum(tau, time) / time) ** gamma, 0.0)


def midpoints(end: float, count: int) -> tuple[np.ndarray, float]:
    """Places and width of the cells of a numerical integral over [0, end]."""
    return (np.arange(count) + 0.5) * end / count, end / count


def kept(walk: np.ndarray, std: float) -> np.ndarray:
    """The average after each update of parameters (updates, n), as a training keeps it but in float64."""
    averages = [np.zeros(walk.shape[1])]
    for i, params in enumerate(walk):
        stays = power_ema.beta(std, i + 1, 1)
        averages.append(stays * averages[-1] + (1 - stays) * params)
    return np.stack(averages)


@pytest.fixture(scope="module")
def walk() -> np.ndarray:
    """Parameters (STEPS, 300) that wander off from where they began."""
    return np.cumsum(np.random.default_rng(0).normal(size=(STEPS, 300)), axis=0)


@pytest.fixture(scope="module")
def averages(walk: np.ndarray) -> dict[float, np.ndarray]:
    return {std: kept(walk, std) for std in WIDTHS}


@pytest.mark.parametrize("std", [0.001, 0.01, 0.05, 0.1, 0.15, 0.2, 0.25, 0.288])
@pytest.mark.parametrize("time", [1.0, 3e4])
def test_the_width_of_a_profile_is_its_name(std: float, time: float) -> None:
    tau, cell = midpoints(time, 200_000)
    weights = profile(std, time, tau) * cell
    mean = np.sum(weights * tau)
    assert abs(np.sum(weights) - 1) < 1e-4
    np.testing.assert_allclose(np.sqrt(np.sum(weights * (tau - mean) ** 2)) / time, std, rtol=1e-4)


def test_published_exponents() -> None:
    """Sec. 3.1 names widths by gamma = 6.94 (0.10) and 16.97 (0.05)."""
    assert [round(power_ema.exponent(std), 2) for std in (0.10, 0.05)] == [6.94, 16.97]
    assert abs(power_ema.exponent(WIDEST)) < 1e-9


@pytest.mark.parametrize("std", [0.04, 0.1, 0.2])
def test_each_update_weighs_what_the_profile_has_between_it_and_the_one_before(std: float) -> None:
    updates = 60
    weights = kept(np.eye(updates), std)[-1]
    edges = (np.arange(updates + 1) / updates) ** (power_ema.exponent(std) + 1)
    np.testing.assert_allclose(weights, np.diff(edges), rtol=1e-9, atol=1e-12)


def test_two_decays_in_a_row_are_one_over_the_time_of_both() -> None:
    for std in (0.03, 0.1, 0.25):
        both = power_ema.beta(std, 40.0, 15.0) * power_ema.beta(std, 50.0, 10.0)
        assert math.isclose(both, power_ema.beta(std, 50.0, 25.0), rel_tol=1e-12)


@pytest.mark.parametrize("std", [0.02, 0.05, 0.28])
def test_the_decay_of_a_step_is_beta_and_forgets_the_start(std: float) -> None:
    steps = jnp.asarray([0, 1, 2, 9, 1_000, 123_456], jnp.int32)
    decays = jax.jit(jax.vmap(lambda step: power_ema.decay(std, step)))(steps)
    assert decays.dtype == jnp.float32 and decays[0] == 0
    expected = [power_ema.beta(std, step + 1, 1) for step in steps.tolist()]
    np.testing.assert_allclose(decays, expected, rtol=1e-5, atol=1e-30)


def test_decays_of_a_long_training_do_not_drift() -> None:
    """From 1 to 2 million updates the old average shrinks to 2^-(gamma + 1), in float32 as well."""
    for std in (0.05, 0.2):
        decays = jax.jit(jax.vmap(lambda step, std=std: power_ema.decay(std, step)))(jnp.arange(1_000_000, 2_000_000))
        product = np.sum(np.log(np.asarray(decays, np.float64)))
        np.testing.assert_allclose(product, -(power_ema.exponent(std) + 1) * math.log(2), rtol=1e-4)


# Largest distance between what is kept and what snapshots make, over how far the average is from the parameters.
@pytest.mark.parametrize(
    ("std", "allowed"), [(0.04, 0.015), (0.06, 0.004), (0.075, 0.004), (0.12, 0.003), (0.15, 0.006), (0.2, 0.02)]
)
@pytest.mark.parametrize("time", [1_000, 1_500, 2_000])
def test_what_snapshots_make_is_what_would_have_been_kept(
    std: float, allowed: float, time: int, walk: np.ndarray, averages: dict[float, np.ndarray]
) -> None:
    direct = kept(walk[:time], std)[-1]
    early = TIMES <= time
    stored = np.stack([averages[width][step] for step, width in zip(TIMES[early], STDS[early], strict=True)])
    made = coefficients(TIMES[early], STDS[early], time, std) @ stored
    error = np.linalg.norm(made - direct) / np.linalg.norm(direct - walk[time - 1])
    assert error < allowed
    nearest = min(np.linalg.norm(averages[width][time] - direct) for width in WIDTHS)
    assert np.linalg.norm(made - direct) < nearest / 8


@pytest.mark.parametrize("index", [0, 7, len(TIMES) - 2, len(TIMES) - 1])
def test_a_stored_average_is_itself(index: int) -> None:
    found = coefficients(TIMES, STDS, TIMES[index], STDS[index])
    np.testing.assert_allclose(found, np.eye(len(TIMES))[index], atol=1e-10)
    assert mismatch(found, TIMES, STDS, TIMES[index], STDS[index]) < 1e-6


@pytest.mark.parametrize("std", [0.03, 0.075, 0.25])
@pytest.mark.parametrize("time", [700, 1_960, 2_000])
def test_coefficients_sum_to_one(std: float, time: float) -> None:
    early = TIMES <= time
    assert abs(np.sum(coefficients(TIMES[early], STDS[early], time, std)) - 1) < 1e-12


def test_coefficients_are_the_least_squares_of_profiles_on_a_fine_grid() -> None:
    times, stds, time, std = np.asarray([900.0, 600.0, 900.0, 300.0]), (0.05, 0.1, 0.2, 0.1), 900.0, 0.12
    tau, cell = midpoints(time, 200_000)
    each = np.stack([profile(s, t, tau) for t, s in zip(times, stds, strict=True)], axis=1)
    wanted = profile(std, time, tau)
    free = np.linalg.lstsq(each, wanted, rcond=None)[0]
    found = coefficients(times, stds, time, std)
    np.testing.assert_allclose(found, free / free.sum(), rtol=1e-4)
    distance = np.sqrt(np.sum((each @ found - wanted) ** 2) / np.sum(wanted**2))
    np.testing.assert_allclose(mismatch(found, times, stds, time, std), distance, rtol=1e-4)
    assert 0.01 < distance < 0.5


@pytest.mark.parametrize("unit", [1e-3, 2_048.0, 1e6])
def test_the_unit_of_time_does_not_matter_up_to_billions(unit: float) -> None:
    for std in (0.01, 0.15):
        found = coefficients(TIMES * unit, STDS, STEPS * unit, std)
        np.testing.assert_allclose(found, coefficients(TIMES, STDS, STEPS, std), rtol=1e-6, atol=1e-9)


def test_a_long_list_of_snapshots_and_one_that_is_there_twice_are_no_trouble() -> None:
    times = np.repeat(np.arange(1, 501) * 2e6, 2)
    found = coefficients(times, np.tile(WIDTHS, 500), times[-1], 0.15)
    assert mismatch(found, times, np.tile(WIDTHS, 500), times[-1], 0.15) < 1e-4 and np.sum(np.abs(found)) < 3
    twice = coefficients([100, 200, 200], [0.1, 0.1, 0.1], 200, 0.1)
    np.testing.assert_allclose(twice, [0, 0.5, 0.5], atol=1e-12)


@pytest.mark.parametrize("std", [0.0, -0.1, 1e-300, WIDEST, 0.5, math.nan, math.inf])
def test_a_width_that_no_profile_has_is_refused_with_its_range(std: float) -> None:
    for given, field in (((), "ema.sigma_rel"), (("std",), "std")):
        with pytest.raises(UserError) as caught:
            power_ema.check(std, *given)
        assert caught.value.field == field


def test_names_of_items_differ_where_widths_do() -> None:
    power_ema.check(0.05)
    assert [power_ema.item(std) for std in (0.05, 0.1, 0.075)] == ["ema_0.050", "ema_0.100", "ema_0.075"]


class Stored:
    """Snapshots by number, at most one of which is in somebody's hands."""

    def __init__(self, damaged: tuple[Snapshot, ...] = ()) -> None:
        self.damaged, self.reads = damaged, []

    def __call__(self, snapshot: Snapshot) -> Any:
        self.reads.append(snapshot)
        if snapshot in self.damaged:
            raise UserError("it is damaged")
        return self.tree(snapshot)

    @staticmethod
    def tree(snapshot: Snapshot) -> Any:
        values = np.random.default_rng([snapshot.step, round(1e3 * snapshot.std)]).normal(size=(2, 3))
        return {"layer": {"kernel": jnp.asarray(values, jnp.float32)}, "frozen_table": jnp.float32(values[0, 0])}


ALL = [Snapshot(int(step), std) for step in (300, 100, 200) for std in WIDTHS]


def by_hand(snapshots: list[Snapshot], step: int, std: float) -> np.ndarray:
    weights = coefficients(*zip(*snapshots, strict=True), step, std)
    trees = [np.asarray(Stored.tree(each)["layer"]["kernel"], np.float64) for each in snapshots]
    return np.tensordot(weights, np.stack(trees), 1)


def test_trees_are_summed_with_the_coefficients_of_what_is_not_later() -> None:
    stored = Stored()
    first, second = reconstruct(ALL, stored, 250, [0.07, 0.15])
    early = sorted(each for each in ALL if each.step <= 250)
    assert stored.reads == early and first.snapshots == second.snapshots == tuple(early)
    for std, average in ((0.07, first), (0.15, second)):
        kernel = average.params["layer"]["kernel"]
        assert kernel.dtype == np.float32
        np.testing.assert_allclose(kernel, by_hand(early, 250, std), rtol=1e-6)
        assert average.mismatch == mismatch(
            coefficients(*zip(*early, strict=True), 250, std), *zip(*early, strict=True), 250, std
        )


def test_constants_are_those_of_the_last_snapshot_bit_for_bit() -> None:
    for average in reconstruct(ALL, Stored(), 300, [0.02, 0.15]):
        table = average.params["frozen_table"]
        assert table.dtype == np.float32 and table == Stored.tree(Snapshot(300, 0.10))["frozen_table"]


@pytest.mark.parametrize("damaged", [ALL[:1], ALL[2:4], [ALL[1], ALL[4]]])
def test_what_cannot_be_read_is_left_out_and_named(damaged: list[Snapshot]) -> None:
    with mock.patch.object(power_ema.logging, "warning") as warned:
        (average,) = reconstruct(ALL, Stored(tuple(damaged)), 300, [0.08])
    left = sorted(set(ALL) - set(damaged))
    assert average.snapshots == tuple(left)
    np.testing.assert_allclose(average.params["layer"]["kernel"], by_hand(left, 300, 0.08), rtol=1e-6)
    said = [call.args[0] % call.args[1:] for call in warned.call_args_list]
    names = [f"the {power_ema.item(each.std)} of step {each.step} is left out: it is damaged" for each in damaged]
    assert sorted(said) == sorted(names)


@pytest.mark.parametrize("step", [99, 300])
def test_without_any_snapshot_there_is_no_average(step: int) -> None:
    with pytest.raises(UserError):
        reconstruct(ALL, Stored(tuple(ALL)), step, [0.08])
