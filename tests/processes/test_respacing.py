"""Laws of respacing: how many steps, from which, how even, and what cannot be cut."""

from __future__ import annotations

import numpy as np
import pytest

from archirf_jax.errors import UserError
from archirf_jax.processes.respacing import respaced


def test_any_number_of_steps_runs_evenly_from_the_first_to_the_last() -> None:
    for total in range(1, 41):
        for count in range(1, total + 1):
            steps = respaced(str(count), total)
            assert len(steps) == count and steps[0] == 0
            assert count == 1 or steps[-1] == total - 1
            gaps = np.diff(steps)
            assert np.all(gaps >= 1) and (count < 3 or np.ptp(gaps) <= 1)
            even = np.linspace(0, total - 1, count) if count > 1 else np.zeros(1)
            assert np.max(np.abs(steps - even)) <= 0.5 + 1e-9


@pytest.mark.parametrize("total", [1000, 999, 7])
def test_all_steps_are_all_steps(total: int) -> None:
    np.testing.assert_array_equal(respaced(str(total), total), np.arange(total))
    np.testing.assert_array_equal(respaced(f"ddim{total}", total), np.arange(total))


@pytest.mark.parametrize("total", [300, 301, 302])
def test_each_section_has_its_own_number_of_steps(total: int) -> None:
    """The first sections take what does not divide."""
    sizes = [total // 3 + (i < total % 3) for i in range(3)]
    starts = np.cumsum([0, *sizes])
    steps = respaced("10,15,20", total)
    for i, count in enumerate((10, 15, 20)):
        section = steps[(steps >= starts[i]) & (steps < starts[i + 1])]
        np.testing.assert_array_equal(section - starts[i], respaced(str(count), sizes[i]))
    assert len(steps) == 45 and steps[-1] == total - 1


@pytest.mark.parametrize("count", [1, 2, 4, 5, 10, 25, 50, 100, 250, 500, 1000])
def test_ddim_takes_every_nth_step_from_the_first(count: int) -> None:
    np.testing.assert_array_equal(respaced(f"ddim{count}", 1000), np.arange(0, 1000, 1000 // count))


def test_ddim_takes_the_smallest_stride_that_makes_the_number() -> None:
    np.testing.assert_array_equal(respaced("ddim3", 10), [0, 4, 8])
    np.testing.assert_array_equal(respaced("ddim2", 10), [0, 5])


@pytest.mark.parametrize("text", ["", "many", "10,", "-5", "2.5", "0", "10,0", "ddim", "ddimx", "ddim-5"])
def test_what_is_not_a_respacing_is_refused(text: str) -> None:
    with pytest.raises(UserError) as caught:
        respaced(text, 1000, "process.respacing")
    assert (caught.value.field, caught.value.value) == ("process.respacing", text)


@pytest.mark.parametrize("text", ["11", "2,6", "ddim11"])
def test_more_steps_than_there_are_cannot_be_had(text: str) -> None:
    with pytest.raises(UserError) as caught:
        respaced(text, 10)
    assert (caught.value.field, caught.value.value) == ("sample.grid", text)


@pytest.mark.parametrize(("text", "nearest"), [("ddim490", "ddim500"), ("ddim0", "ddim1")])
def test_a_number_that_no_stride_makes_brings_the_nearest_that_one_does(text: str, nearest: str) -> None:
    with pytest.raises(UserError) as caught:
        respaced(text, 1000)
    assert nearest in str(caught.value)
