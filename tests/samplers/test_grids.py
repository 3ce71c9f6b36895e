"""Laws of the time grids: (N, 2) steps from noise to data that fit together, and the lists of steps of the papers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from archirf_jax.errors import UserError
from archirf_jax.processes.base import Process
from archirf_jax.processes.ddpm import DDPM
from archirf_jax.processes.edm import EDM
from archirf_jax.processes.rectified_flow import RectifiedFlow
from archirf_jax.samplers import grids

FLOW, DENOISING, NOISING = RectifiedFlow(), DDPM(), EDM()
PROCESSES: list[Process] = [FLOW, RectifiedFlow(path="gvp"), RectifiedFlow(path="vp"), DENOISING, NOISING]
EVERYWHERE = ("uniform", "shifted", "linspace", "karras")
INTEGERS = ("trailing", "leading")
# Every grid whose steps fit together, on every process that has it.
CONSISTENT = [(name, process) for process in PROCESSES for name in EVERYWHERE]
CONSISTENT += [(name, DENOISING) for name in INTEGERS]


def visited(name: str, steps: int, total: int = 1000) -> list[int]:
    """The integer steps at which a grid asks the network of ddpm."""
    times = grids.make(name, DDPM(steps=total), steps)[:, 0]
    places = times * total - 1
    np.testing.assert_allclose(places, places.round(), atol=1e-9)
    return [int(place) for place in places.round()]


def test_every_grid_is_tested() -> None:
    assert set(grids.NAMES) == {*EVERYWHERE, *INTEGERS, "archirf"}


@pytest.mark.parametrize(("name", "process"), CONSISTENT)
@pytest.mark.parametrize("steps", [1, 2, 7, 50])
def test_a_grid_has_n_steps_that_fit_together_and_fall_to_the_data(name: str, process: Process, steps: int) -> None:
    grid = grids.make(name, process, steps)
    assert grid.shape == (steps, 2) and grid.dtype == np.float64
    assert np.array_equal(grid[1:, 0], grid[:-1, 1])
    assert np.all(grid[:, 1] < grid[:, 0])
    assert grid[0, 0] <= 1 and grid[-1, 1] == 0


@pytest.mark.parametrize("name", ["uniform", "shifted", "linspace", "trailing"])
@pytest.mark.parametrize("steps", [1, 2, 7, 50])
def test_these_grids_start_at_noise_alone(name: str, steps: int) -> None:
    for process in PROCESSES if name in EVERYWHERE else [DENOISING]:
        assert grids.make(name, process, steps)[0, 0] == 1


def test_a_grid_is_even_unless_shifted() -> None:
    np.testing.assert_allclose(grids.make("uniform", FLOW, 4), [[1, 0.75], [0.75, 0.5], [0.5, 0.25], [0.25, 0]])
    np.testing.assert_array_equal(grids.make("shifted", FLOW, 7), grids.make("uniform", FLOW, 7))
    # Half way, the odds of noise are 1 before the shift, hence 3 after it.
    np.testing.assert_allclose(grids.make("shifted", FLOW, 8, shift=3.0)[4, 0], 3 / 4, rtol=1e-12)


@pytest.mark.parametrize("shift", [0.1, 3.0])
def test_a_shifted_grid_keeps_its_ends_and_multiplies_the_odds(shift: float) -> None:
    even, moved = grids.make("uniform", FLOW, 9), grids.make("shifted", FLOW, 9, shift)
    assert moved[0, 0] == 1 and moved[-1, 1] == 0
    inside = even[1:, 0]
    np.testing.assert_allclose(moved[1:, 0] / (1 - moved[1:, 0]), shift * inside / (1 - inside), rtol=1e-12)


def test_linspace_asks_other_processes_for_the_last_time_at_a_thousandth() -> None:
    np.testing.assert_allclose(grids.make("linspace", FLOW, 4)[:, 0], [1, 0.667, 0.334, 0.001], rtol=1e-12)


@pytest.mark.parametrize(
    ("name", "steps", "total", "expected"),
    [
        ("linspace", 4, 1000, [999, 666, 333, 0]),
        ("linspace", 5, 10, [9, 7, 4, 2, 0]),  # 6.75, 4.5 and 2.25 rounded, halves to even
        ("linspace", 1, 1000, [999]),
        ("linspace", 10, 10, [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]),
        ("trailing", 4, 1000, [999, 749, 499, 249]),
        ("trailing", 3, 10, [9, 6, 2]),  # 10, 6.67 and 3.33 rounded, less 1
        ("trailing", 1, 1000, [999]),
        ("trailing", 10, 10, [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]),
        ("leading", 4, 1000, [750, 500, 250, 0]),
        ("leading", 3, 10, [6, 3, 0]),
        ("leading", 10, 10, [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]),
        ("5", 1, 1000, [999, 749, 500, 250, 0]),  # 249.75, 499.5 and 749.25 rounded, halves to even
        ("3,2", 1, 10, [9, 5, 4, 2, 0]),
        ("ddim5", 1, 1000, [800, 600, 400, 200, 0]),
        ("ddim4", 1, 10, [9, 6, 3, 0]),
    ],
)
def test_the_integer_steps_of_a_grid(name: str, steps: int, total: int, expected: list[int]) -> None:
    assert visited(name, steps, total) == expected


def test_a_respacing_says_its_own_number_of_steps() -> None:
    assert len(grids.make("25", DENOISING, 7)) == len(grids.make("ddim25", DENOISING, 3)) == 25
    assert grids.make("25", DENOISING, 7)[-1, 1] == 0


@pytest.mark.parametrize("steps", [2, 5, 18])
def test_karras_is_equation_5_of_edm(steps: int) -> None:
    i = np.arange(steps)
    sigma = (80 ** (1 / 7) + i / (steps - 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    for process in (FLOW, NOISING, RectifiedFlow(path="gvp")):
        np.testing.assert_allclose(process.ratio(grids.make("karras", process, steps)[:, 0]), sigma, rtol=1e-9)
    np.testing.assert_allclose(grids.karras_sigmas(EDM(sigma_min=0.01, sigma_max=50.0), steps)[[0, -1]], [50, 0.01])


def test_karras_stays_within_the_noise_that_ddpm_knows() -> None:
    weak = DDPM(schedule="scaled_linear", beta_end=0.002)
    ratios = weak.ratio(np.asarray([1.0, 1 / 1000]))
    assert ratios[0] < 80
    grid = grids.make("karras", weak, 5)
    np.testing.assert_allclose(weak.ratio(grid[[0, -1], 0]), ratios, rtol=1e-9)
    assert grids.make("karras", DENOISING, 5)[0, 0] < 1  # 80 is less than its last 157
    np.testing.assert_allclose(DENOISING.ratio(grids.make("karras", DENOISING, 5)[[0, -1], 0]), [80, 0.01], rtol=1e-4)


@pytest.mark.parametrize("steps", [2, 5, 50])
def test_the_original_grid_of_flows_asks_at_times_that_do_not_fit_its_steps(steps: int) -> None:
    grid = grids.make("archirf", FLOW, steps)
    np.testing.assert_array_equal(grid[:, 0], np.linspace(1, 0, steps))
    np.testing.assert_allclose(grid[:, 0] - grid[:, 1], 1 / steps, atol=1e-15)


def test_the_original_grid_of_ddpm_leaves_out_the_last_step_and_so_leaves_noise() -> None:
    grid = grids.make("archirf", DENOISING, 5)
    np.testing.assert_allclose(grid * 1000 - 1, [[801, 601], [601, 401], [401, 201], [201, 1]], atol=1e-9)
    assert abs(float(DENOISING.sigma(grid[-1, 1])) - 0.0148) < 5e-5
    assert len(grids.make("archirf", DENOISING, 1000)) == 999


def test_a_grid_that_starts_later_is_the_end_of_the_whole_grid() -> None:
    whole = grids.make("uniform", FLOW, 10)
    for t, kept in ((1.0, 10), (0.65, 6), (0.6, 6), (0.1, 1)):
        np.testing.assert_array_equal(grids.starting_at(whole, t), whole[10 - kept :])


WRONG: list[tuple[str, Process, int, float, str]] = [
    ("uniform", FLOW, 0, 1.0, "steps: 0 .*at least 1"),
    ("uniform", FLOW, -1, 1.0, "steps: -1"),
    ("shifted", FLOW, 4, 0.0, "shift: 0.0"),
    ("shifted", FLOW, 4, -1.0, "shift: -1.0"),
    ("shifted", FLOW, 4, float("inf"), "shift: inf"),
    ("shifted", FLOW, 4, float("nan"), "shift: nan"),
    ("uniform", FLOW, 4, 3.0, "shift: 3.0 belongs to the grid 'shifted' alone, not to 'uniform'"),
    ("karas", FLOW, 4, 1.0, "grid: 'karas' is not one of uniform, .*did you mean 'karras'"),
    ("karas", DENOISING, 4, 1.0, "grid: 'karas' is not one of uniform, .*trailing, .*250 or ddim50"),
    ("trailing", FLOW, 4, 1.0, "grid: 'trailing' counts the integer steps of ddpm.* it has uniform, "),
    ("leading", NOISING, 4, 1.0, "grid: 'leading' counts the integer steps of ddpm.* it has uniform, "),
    ("250", FLOW, 4, 1.0, "grid: '250' counts the integer steps of ddpm"),
    ("ddim50", NOISING, 4, 1.0, "grid: 'ddim50' counts the integer steps of ddpm"),
    ("linspace", DENOISING, 1001, 1.0, "steps: 1001 .*1000"),
    ("trailing", DENOISING, 1001, 1.0, "steps: 1001 .*1000"),
    ("leading", DENOISING, 1001, 1.0, "steps: 1001 .*1000"),
    ("archirf", DENOISING, 1001, 1.0, "steps: 1001 .*1000"),
    ("archirf", DENOISING, 1, 1.0, "steps: 1 .*at least 2"),
    ("archirf", FLOW, 1, 1.0, "steps: 1 .*at least 2"),
    ("archirf", NOISING, 5, 1.0, "grid: 'archirf' .*only ddpm and rectified_flow .*use 'uniform'"),
    ("archirf", RectifiedFlow(path="vp"), 5, 1.0, "grid: 'archirf' .*path='linear'"),
    ("archirf", RectifiedFlow(prediction="x0"), 5, 1.0, "grid: 'archirf' .*prediction='velocity'"),
    ("12x", DENOISING, 4, 1.0, "'12x' must be a number such as 250"),
    ("2000", DENOISING, 4, 1.0, "'2000' asks for 2000 of 1000 steps"),
    ("ddim300", DENOISING, 4, 1.0, "'ddim300' cannot be cut from 1000 steps"),
]


@pytest.mark.parametrize(("name", "process", "steps", "shift", "message"), WRONG)
def test_a_grid_that_cannot_be_is_named_with_what_can(
    name: str, process: Process, steps: int, shift: float, message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        grids.make(name, process, steps, shift)
    assert "\n" not in str(caught.value)


def test_other_processes_are_not_offered_the_grids_of_ddpm() -> None:
    for name in ("karas", "trailing"):
        with pytest.raises(UserError) as caught:
            grids.make(name, FLOW, 4)
        assert "leading" not in str(caught.value)


def test_a_start_after_the_last_step_is_refused() -> None:
    with pytest.raises(UserError, match="strength: 0.05 is below the last step of the grid, at 0.1; take more steps"):
        grids.starting_at(grids.make("uniform", FLOW, 10), 0.05)


@pytest.mark.parametrize(("path", "fits"), [("linear", False), ("gvp", False), ("vp", True)])
def test_a_start_at_noise_alone_is_refused_where_the_network_predicts_noise(path: str, fits: bool) -> None:
    process: Any = RectifiedFlow(path=path, prediction="eps")
    process.check_start(grids.make("karras", process, 5)[0, 0])
    if fits:
        process.check_start(1.0)
    else:
        with pytest.raises(UserError, match="grid: starts at t=1.*'karras'"):
            process.check_start(1.0)
