"""The time grids: (N, 2) steps from noise to data that fit together, and the integer steps of the papers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from archirf_jax import registry
from archirf_jax.errors import UserError
from archirf_jax.processes.base import Process
from archirf_jax.processes.ddpm import DDPM
from archirf_jax.processes.edm import EDM
from archirf_jax.processes.rectified_flow import RectifiedFlow
from archirf_jax.samplers import grids
from archirf_jax.samplers.config import SamplerConfig
from archirf_jax.samplers.grids.dynamic_shift import DynamicShift
from archirf_jax.samplers.grids.karras import Karras
from tests.samplers.exact import grid

FLOW, DENOISING, NOISING = RectifiedFlow(), DDPM(), EDM()
PROCESSES: list[Process] = [FLOW, RectifiedFlow(path="gvp"), RectifiedFlow(path="vp"), DENOISING, NOISING]
EVERYWHERE = ("uniform", "shifted", "linspace", "karras")
INTEGERS = ("trailing", "leading")
# Every grid whose steps fit together, on every process that has it.
CONSISTENT = [(name, process) for process in PROCESSES for name in EVERYWHERE]
CONSISTENT += [(name, DENOISING) for name in INTEGERS]


def spaced(name: str, process: Process, steps: int) -> np.ndarray:
    """The grid that is named by its spacing, whatever the steps."""
    return SamplerConfig.from_config({"grid": name}).make_grid(process)


def odds(times: np.ndarray) -> np.ndarray:
    """Logarithms of the odds of noise."""
    return np.log(times / (1 - times))


def visited(name: str, steps: int, total: int = 1000) -> list[int]:
    """The integer steps at which a grid asks the network of ddpm."""
    times = (spaced if name[-1].isdecimal() else grid)(name, DDPM(steps=total), steps)[:, 0]
    places = times * total - 1
    np.testing.assert_allclose(places, places.round(), atol=1e-9)
    return [int(place) for place in places.round()]


def test_every_grid_is_tested() -> None:
    assert set(registry.names(grids)) == {*EVERYWHERE, *INTEGERS, "dynamic_shift", "archirf", "respaced"}


@pytest.mark.parametrize(("name", "process"), CONSISTENT)
@pytest.mark.parametrize("steps", [1, 2, 7, 50])
def test_a_grid_has_n_steps_that_fit_together_and_fall_to_the_data(name: str, process: Process, steps: int) -> None:
    found = grid(name, process, steps)
    assert found.shape == (steps, 2) and found.dtype == np.float64
    assert np.array_equal(found[1:, 0], found[:-1, 1])
    assert np.all(found[:, 1] < found[:, 0])
    assert found[0, 0] <= 1 and found[-1, 1] == 0


@pytest.mark.parametrize("name", ["uniform", "shifted", "linspace", "trailing"])
@pytest.mark.parametrize("steps", [1, 2, 7, 50])
def test_these_grids_start_at_noise_alone(name: str, steps: int) -> None:
    for process in PROCESSES if name in EVERYWHERE else [DENOISING]:
        assert grid(name, process, steps)[0, 0] == 1


def test_a_grid_is_even_unless_shifted() -> None:
    np.testing.assert_allclose(grid("uniform", FLOW, 4), [[1, 0.75], [0.75, 0.5], [0.5, 0.25], [0.25, 0]])
    np.testing.assert_array_equal(grid("shifted", FLOW, 7), grid("uniform", FLOW, 7))
    # Half way, the odds of noise are 1 before the shift, hence 3 after it.
    np.testing.assert_allclose(grid("shifted", FLOW, 8, shift=3.0)[4, 0], 3 / 4, rtol=1e-12)


@pytest.mark.parametrize("shift", [0.1, 3.0])
def test_a_shifted_grid_keeps_its_ends_and_multiplies_the_odds(shift: float) -> None:
    even, moved = grid("uniform", FLOW, 9), grid("shifted", FLOW, 9, shift=shift)
    assert moved[0, 0] == 1 and moved[-1, 1] == 0
    inside = even[1:, 0]
    np.testing.assert_allclose(moved[1:, 0] / (1 - moved[1:, 0]), shift * inside / (1 - inside), rtol=1e-12)


@pytest.mark.parametrize("process", PROCESSES)
def test_given_sigmas_are_the_times_before_the_shift(process: Process) -> None:
    given = (0.9, 0.5, 0.2)
    plain = SamplerConfig.from_config({"grid": {"name": "shifted", "sigmas": given}})
    assert plain.steps == 3
    np.testing.assert_array_equal(plain.make_grid(process), [[0.9, 0.5], [0.5, 0.2], [0.2, 0]])
    for name, fields, rise in (
        ("shifted", {"shift": 3.0}, np.log(3)),
        ("dynamic_shift", {"image_seq_len": 256}, 0.5),
    ):
        found = grid(name, process, 3, sigmas=given, **fields)
        np.testing.assert_allclose(odds(found[:, 0]), odds(np.asarray(given)) + rise, rtol=1e-12)
        assert np.array_equal(found[1:, 0], found[:-1, 1]) and found[-1, 1] == 0


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_the_last_of_even_times_is_where_it_is_said_and_the_data_follow(steps: int) -> None:
    moved = grid("shifted", FLOW, steps, shift=3.0, last=0.01)
    even = grid("shifted", FLOW, steps, last=0.01)
    np.testing.assert_allclose(even[:, 0], np.linspace(1, 0.01, steps), rtol=1e-12)
    assert np.array_equal(even[1:, 0], even[:-1, 1]) and even[-1, 1] == moved[-1, 1] == 0 and moved[0, 0] == 1
    np.testing.assert_allclose(odds(moved[1:, 0]), odds(even[1:, 0]) + np.log(3), rtol=1e-12)
    dynamic = grid("dynamic_shift", FLOW, steps, image_seq_len=256, last=0.01)
    np.testing.assert_allclose(odds(dynamic[1:, 0]), odds(even[1:, 0]) + 0.5, rtol=1e-12)
    assert grid("shifted", FLOW, 2, sigmas=(0.9, 0.5), last=0.01)[1, 0] == 0.5  # given times are no even ones


@pytest.mark.parametrize(
    ("tokens", "fields", "mu"),
    [
        (256, {}, 0.5),
        (4096, {}, 1.15),
        (2176, {}, 0.825),  # half way
        (8, {}, 0.5 - 248 * 0.65 / 3840),
        (8192, {}, 1.15 + 4096 * 0.65 / 3840),
        (30, dict(base_shift=-1.0, max_shift=3.0, base_image_seq_len=10, max_image_seq_len=50), 1.0),
    ],
)
@pytest.mark.parametrize("process", [FLOW, DENOISING])
def test_a_dynamic_shift_raises_the_log_odds_of_noise_by_a_line_in_the_tokens(
    tokens: int, fields: dict[str, Any], mu: float, process: Process
) -> None:
    even, moved = grid("uniform", process, 9), grid("dynamic_shift", process, 9, image_seq_len=tokens, **fields)
    np.testing.assert_allclose(odds(moved[1:, 0]), odds(even[1:, 0]) + mu, rtol=1e-10)
    assert moved[0, 0] == 1 and moved[-1, 1] == 0 and np.array_equal(moved[1:, 0], moved[:-1, 1])
    np.testing.assert_allclose(moved, grid("shifted", process, 9, shift=float(np.exp(mu))), rtol=1e-12)


@pytest.mark.parametrize("tokens", [1, 68_000])
def test_the_largest_dynamic_shifts_still_have_steps_that_fall_in_single_precision(tokens: int) -> None:
    found = DynamicShift(tokens).times(FLOW, 50).astype(np.float32)
    assert np.all(found[:, 1] < found[:, 0])


def test_linspace_asks_other_processes_for_the_last_time_at_a_thousandth() -> None:
    np.testing.assert_allclose(grid("linspace", FLOW, 4)[:, 0], [1, 0.667, 0.334, 0.001], rtol=1e-12)


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


# What diffusers 0.42.1 computes for T = 1000: `scheduler.timesteps`, of whose 50 every seventh and the last.
OFFSET, SOLVER = {"offset": 1}, {"offset": 1, "skipped": 1}
SPACED: list[tuple[str, dict[str, int], list[int], list[int]]] = [
    ("leading", OFFSET, [801, 601, 401, 201, 1], [981, 841, 701, 561, 421, 281, 141, 1]),
    ("leading", SOLVER, [831, 665, 499, 333, 167], [951, 818, 685, 552, 419, 286, 153, 20]),
    ("trailing", {}, [999, 799, 599, 399, 199], [999, 859, 719, 579, 439, 299, 159, 19]),
    ("linspace", {"skipped": 1}, [999, 799, 599, 400, 200], [999, 859, 719, 579, 440, 300, 160, 20]),
]


@pytest.mark.parametrize(("name", "fields", "five", "fifty"), SPACED)
def test_the_timesteps_of_published_pipelines(
    name: str, fields: dict[str, int], five: list[int], fifty: list[int]
) -> None:
    def timesteps(steps: int) -> list[int]:
        made = SamplerConfig.from_config({"grid": {"name": name, **fields}, "steps": steps}).make_grid(DDPM())
        return [round(time) for time in made[:, 0] * 1000 - 1]

    assert timesteps(5) == five
    assert [*timesteps(50)[::7][:7], timesteps(50)[-1]] == [*fifty[:7], fifty[-1]]


@pytest.mark.parametrize("name", INTEGERS)
def test_a_grid_may_end_at_the_first_step_instead_of_the_data(name: str) -> None:
    usual, other = (
        SamplerConfig.from_config({"grid": {"name": name, "ends_at_data": ends}, "steps": 4}).make_grid(DDPM())
        for ends in (True, False)
    )
    assert usual[-1, 1] == 0 and other[-1, 1] == 1 / 1000
    np.testing.assert_array_equal(usual[:, 0], other[:, 0])


@pytest.mark.parametrize(("fields", "steps", "wrong"), [(OFFSET, 1000, "offset"), ({"offset": -1}, 4, "offset")])
def test_an_offset_beyond_the_steps_is_refused(fields: dict[str, int], steps: int, wrong: str) -> None:
    with pytest.raises(UserError) as caught:
        SamplerConfig.from_config({"grid": {"name": "leading", **fields}, "steps": steps}).make_grid(DDPM())
    assert caught.value.field == f"sample.grid.{wrong}"


@pytest.mark.parametrize("steps", [2, 5, 18])
def test_karras_is_equation_5_of_edm(steps: int) -> None:
    i = np.arange(steps)
    sigma = (80 ** (1 / 7) + i / (steps - 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    for process in (FLOW, NOISING, RectifiedFlow(path="gvp")):
        np.testing.assert_allclose(process.ratio(grid("karras", process, steps)[:, 0]), sigma, rtol=1e-9)
    np.testing.assert_allclose(Karras().sigmas(EDM(sigma_min=0.01, sigma_max=50.0), steps)[[0, -1]], [50, 0.01])
    np.testing.assert_allclose(Karras(sigma_min=0.01, sigma_max=50.0).sigmas(FLOW, steps)[[0, -1]], [50, 0.01])


def test_karras_stays_within_the_noise_that_ddpm_knows() -> None:
    weak = DDPM(schedule="scaled_linear", beta_end=0.002)
    ratios = weak.ratio(np.asarray([1.0, 1 / 1000]))
    assert ratios[0] < 80
    found = grid("karras", weak, 5)
    np.testing.assert_allclose(weak.ratio(found[[0, -1], 0]), ratios, rtol=1e-9)
    assert grid("karras", DENOISING, 5)[0, 0] < 1  # 80 is less than its last 157
    np.testing.assert_allclose(DENOISING.ratio(grid("karras", DENOISING, 5)[[0, -1], 0]), [80, 0.01], rtol=1e-4)


@pytest.mark.parametrize("steps", [2, 5, 50])
def test_the_original_grid_of_flows_asks_at_times_that_do_not_fit_its_steps(steps: int) -> None:
    found = grid("archirf", FLOW, steps)
    np.testing.assert_array_equal(found[:, 0], np.linspace(1, 0, steps))
    np.testing.assert_allclose(found[:, 0] - found[:, 1], 1 / steps, atol=1e-15)


def test_the_original_grid_of_ddpm_leaves_out_the_last_step_and_so_leaves_noise() -> None:
    found = grid("archirf", DENOISING, 5)
    np.testing.assert_allclose(found * 1000 - 1, [[801, 601], [601, 401], [401, 201], [201, 1]], atol=1e-9)
    assert abs(float(DENOISING.sigma(found[-1, 1])) - 0.0148) < 5e-5
    assert len(grid("archirf", DENOISING, 1000)) == 999


@pytest.mark.parametrize(("path", "fits"), [("linear", False), ("gvp", False), ("vp", True)])
def test_a_start_at_noise_alone_is_refused_where_the_network_predicts_noise(path: str, fits: bool) -> None:
    process: Any = RectifiedFlow(path=path, prediction="eps")
    process.check_start(grid("karras", process, 5)[0, 0])
    if fits:
        process.check_start(1.0)
    else:
        with pytest.raises(UserError, match="starts at t=1"):
            process.check_start(1.0)
