"""The measure of cut objects: it knows middles, square originals have their digit there, both networks are drawn."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest
from sklearn.datasets import load_digits

from benchmarks import crop_conditioning
from benchmarks.crop_conditioning import LONGER, SIDE, SIZE, centres, figures, original
from tests.experiments import reduced


def test_a_centre_of_ink_is_where_the_ink_is() -> None:
    images = np.zeros((3, SIZE, SIZE, 1), np.uint8)
    images[0, 2, 9] = 200
    images[1, 5:7, 5:7] = 100
    images[2] = 10  # faint
    found = centres(images)
    np.testing.assert_allclose(found[:2], [[-3.5, 3.5], [0, 0]])
    assert np.isnan(found[2]).all()
    assert figures(images) == pytest.approx({"within_a_pixel": 1 / 3, "distance": 3.5 * 2**0.5 / 2})


def test_digits_stand_in_the_middle_of_their_originals_and_a_quarter_is_square() -> None:
    digits = load_digits().images
    canvases = [original(number, digits[number]) for number in range(80)]
    for canvas, levels in zip(canvases, digits, strict=False):
        top, left = ((side - SIDE) // 2 for side in canvas.shape)
        inner = canvas[top : top + SIDE, left : left + SIDE]
        np.testing.assert_array_equal(inner, np.round(levels * 255 / 16))
        assert min(canvas.shape) == SIZE and max(canvas.shape) in LONGER and canvas.sum() == inner.sum()
    assert sum(canvas.shape == (SIZE, SIZE) for canvas in canvases) == 20
    for axis in (0, 1):
        assert sum(canvas.shape[axis] > SIZE for canvas in canvases) == 30


def test_random_cuts_move_the_ink_and_square_originals_do_not(tmp_path: pathlib.Path) -> None:
    crop_conditioning.write_originals(tmp_path)
    found = crop_conditioning.real(tmp_path)
    assert found["square_originals"]["within_a_pixel"] > 0.9
    assert found["random_cuts"]["within_a_pixel"] < 0.6


@pytest.mark.slow
def test_both_networks_are_trained_and_measured(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reduced.shrink(monkeypatch)
    found = crop_conditioning.measure(tmp_path, steps=4, per_class=8, steer=True, picture=tmp_path / "drawn.png")
    assert found["images"] == 80 and {"with_sizes", "without", "square_originals", "random_cuts"} <= found.keys()
    assert found["column_by_left"].keys() == {"0", "4", "8"} and (tmp_path / "drawn.png").exists()
