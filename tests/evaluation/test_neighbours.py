"""Precision, recall, density, coverage and novelty: by definition, and where everybody knows what they must be."""

from __future__ import annotations

import numpy as np
import pytest
import sklearn

from archirf_jax.evaluation.neighbours import DENSITY_K, PRECISION_K, compare

RANDOM = np.random.default_rng(0)


def by_definition(real: np.ndarray, drawn: np.ndarray) -> dict[str, float]:
    def distance(x: np.ndarray, y: np.ndarray) -> float:
        return float(np.sqrt(np.sum((x - y) ** 2)))

    def radius(points: np.ndarray, i: int, k: int) -> float:
        return sorted(distance(points[i], points[j]) for j in range(len(points)) if j != i)[k - 1]

    def balls(points: np.ndarray, k: int, others: np.ndarray) -> np.ndarray:
        """[i, j]: is other j inside the ball around point i?"""
        radii = [radius(points, i, k) for i in range(len(points))]
        return np.asarray([[distance(points[i], other) <= radii[i] for other in others] for i in range(len(points))])

    dense = balls(real, DENSITY_K, drawn)
    nearest = np.mean([min(distance(x, y) for y in real) for x in drawn])
    own = np.mean([radius(real, i, 1) for i in range(len(real))])
    return {
        "precision": balls(real, PRECISION_K, drawn).any(axis=0).mean(),
        "recall": balls(drawn, PRECISION_K, real).any(axis=0).mean(),
        "density": dense.sum() / DENSITY_K / len(drawn),
        "coverage": dense.any(axis=1).mean(),
        "novelty": nearest / own,
    }


def test_they_are_their_definitions() -> None:
    real, drawn = RANDOM.normal(size=(30, 3)), 0.7 * RANDOM.normal(size=(40, 3)) + 0.5
    assert compare(real, drawn) == pytest.approx(by_definition(real, drawn))


def test_they_do_not_depend_on_how_much_is_computed_at_a_time() -> None:
    real, drawn = RANDOM.normal(size=(400, 3)), RANDOM.normal(size=(700, 3))
    whole = compare(real, drawn)
    with sklearn.config_context(working_memory=0.05):  # MiB: some sixteen rows
        assert compare(real, drawn) == pytest.approx(whole, rel=1e-12)


def test_real_images_again_are_right_complete_and_copies() -> None:
    real = RANDOM.normal(size=(100, 4))
    found = compare(real, real)
    assert found["precision"] == found["recall"] == found["coverage"] == 1
    assert found["novelty"] == pytest.approx(0, abs=1e-6)
    assert found["density"] > 1


@pytest.mark.parametrize("width", [2, 64, 2048])
def test_a_border_belongs_to_its_ball_however_distances_are_rounded(width: int) -> None:
    """Real images that are there six times have balls without extent, and copies are in them."""
    once = (RANDOM.normal(size=(30, width)) + 5).astype(np.float32)
    found = compare(once.repeat(6, axis=0), once)
    assert found["precision"] == found["coverage"] == 1 and "novelty" not in found
    line = np.arange(20.0)[:, None] * np.eye(1, width)  # the third neighbour of its end is three away
    assert compare(line, np.full((6, 1), -3.0) * np.eye(1, width))["precision"] == 1
    assert compare(line, np.full((6, 1), -3.01) * np.eye(1, width))["precision"] == 0


def test_images_of_another_kind_are_neither_right_nor_complete_nor_copies() -> None:
    found = compare(RANDOM.normal(size=(100, 4)), RANDOM.normal(size=(100, 4)) + 100)
    assert found["precision"] == found["recall"] == found["density"] == found["coverage"] == 0
    assert found["novelty"] > 10


def test_a_lost_mode_is_missed_by_recall_and_coverage_alone() -> None:
    real = np.concatenate([RANDOM.normal(size=(100, 2)), RANDOM.normal(size=(100, 2)) + 100])
    found = compare(real, RANDOM.normal(size=(200, 2)))
    assert found["precision"] > 0.8 and found["density"] > 0.8
    assert found["recall"] < 0.51 and found["coverage"] < 0.51


def test_images_of_the_same_kind_are_as_new_as_real_ones() -> None:
    real, drawn = RANDOM.normal(size=(500, 4)), RANDOM.normal(size=(500, 4))
    assert compare(real, drawn)["novelty"] == pytest.approx(1, abs=0.1)
