"""Laws of the time grids: N steps visit N + 1 falling times from noise to data."""

from __future__ import annotations

import numpy as np
import pytest

from archirf_jax.errors import UserError
from archirf_jax.samplers import grids


@pytest.mark.parametrize("steps", [1, 2, 7, 50])
@pytest.mark.parametrize("shift", [0.1, 1.0, 3.0])
def test_a_grid_falls_from_one_to_zero_with_one_point_more_than_steps(steps: int, shift: float) -> None:
    grid = grids.linspace(steps, shift)
    assert grid.shape == (steps + 1,) and grid.dtype == np.float64
    assert grid[0] == 1 and grid[-1] == 0
    assert np.all(np.diff(grid) < 0)


def test_a_grid_is_even_unless_shifted() -> None:
    np.testing.assert_allclose(np.diff(grids.linspace(8)), -1 / 8, rtol=1e-12)
    # Half way, the odds of noise are 1 before the shift, hence 3 after it.
    np.testing.assert_allclose(grids.linspace(8, shift=3.0)[4], 3 / 4, rtol=1e-12)


@pytest.mark.parametrize(
    ("steps", "shift", "named"),
    [(0, 1.0, "steps: 0"), (-1, 1.0, "steps: -1"), (4, 0.0, "shift: 0"), (4, -1.0, "shift: -1")],
)
def test_no_steps_and_no_shift_are_refused(steps: int, shift: float, named: str) -> None:
    with pytest.raises(UserError, match=named):
        grids.linspace(steps, shift)
