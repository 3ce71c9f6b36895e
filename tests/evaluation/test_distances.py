"""Moments gathered in parts, and distances whose values are known: by closed forms, by definition, by expectation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from archirf_jax.evaluation import distances
from archirf_jax.evaluation.distances import frechet, inception_score, kernel
from archirf_jax.evaluation.statistics import Moments, merged, moments

RANDOM = np.random.default_rng(0)


def of_exactly(mean: np.ndarray, covariance: np.ndarray, images: int = 10) -> Moments:
    return Moments(images, mean, covariance * (images - 1))


def test_moments_are_numpys_however_they_are_gathered() -> None:
    x = RANDOM.normal(size=(50, 4)) * [1, 2, 3, 4] + 100
    found = moments(x)
    np.testing.assert_allclose(found.mean, x.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(x, rowvar=False), rtol=1e-10)
    first, second, third = (moments(part) for part in (x[:1], x[1:20], x[20:]))
    for together in (merged(merged(first, second), third), merged(third, merged(second, first))):
        assert together.images == 50
        np.testing.assert_allclose(together.mean, found.mean, rtol=1e-12)
        np.testing.assert_allclose(together.scatter, found.scatter, rtol=1e-10, atol=1e-10)


def test_moments_of_float32_features_far_from_zero_are_computed_in_float64() -> None:
    x = (RANDOM.normal(size=(1000, 3)) + 3000).astype(np.float32)
    parts = [moments(part) for part in np.split(x, 10)]
    whole = parts[0]
    for part in parts[1:]:
        whole = merged(whole, part)
    np.testing.assert_allclose(whole.covariance, np.cov(x.astype(np.float64), rowvar=False), rtol=1e-9, atol=1e-9)


def test_the_frechet_distance_of_commuting_covariances_is_the_closed_form() -> None:
    """It is |m - n|^2 + |a^(1/2) - b^(1/2)|^2."""
    m, n = np.asarray([1.0, 0.0, -1.0]), np.asarray([0.5, 0.5, 0.5])
    rotation = np.linalg.qr(RANDOM.normal(size=(3, 3)))[0]
    a, b = np.asarray([1.0, 4.0, 9.0]), np.asarray([4.0, 1.0, 0.25])
    first, second = (of_exactly(mean, rotation @ np.diag(spread) @ rotation.T) for mean, spread in ((m, a), (n, b)))
    expected = np.sum((m - n) ** 2) + np.sum((np.sqrt(a) - np.sqrt(b)) ** 2)
    assert frechet(first, second) == pytest.approx(expected, rel=1e-12)
    assert frechet(second, first) == pytest.approx(expected, rel=1e-12)
    assert frechet(first, first) == pytest.approx(0, abs=1e-12)


def test_the_frechet_distance_of_two_dimensions_is_the_closed_form_for_any_covariances() -> None:
    """tr (ab)^(1/2) = (tr ab + 2 (det ab)^(1/2))^(1/2) for 2 x 2 matrices, which need not commute."""
    a, b = np.asarray([[2.0, 0.9], [0.9, 1.0]]), np.asarray([[1.0, -0.6], [-0.6, 3.0]])
    cross = math.sqrt(np.trace(a @ b) + 2 * math.sqrt(np.linalg.det(a @ b)))
    expected = np.trace(a) + np.trace(b) - 2 * cross
    zero = np.zeros(2)
    assert frechet(of_exactly(zero, a), of_exactly(zero, b)) == pytest.approx(expected, rel=1e-12)


def test_a_singular_covariance_has_a_distance_too() -> None:
    few = moments(RANDOM.normal(size=(3, 8)))  # rank 2
    many = moments(RANDOM.normal(size=(100, 8)))
    assert 0 < frechet(few, many) < math.inf
    assert frechet(few, few) == pytest.approx(0, abs=1e-6)


def cube(x: np.ndarray, y: np.ndarray) -> float:
    return (float(x @ y) / len(x) + 1) ** 3


@pytest.mark.parametrize("rows", [2, 3, 2048])
def test_the_kernel_distance_is_its_definition(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distances, "ROWS", rows)
    x, y = RANDOM.normal(size=(5, 3)), RANDOM.normal(size=(7, 3)) + 1

    def within(z: np.ndarray) -> float:
        return float(np.mean([cube(z[i], z[j]) for i in range(len(z)) for j in range(len(z)) if i != j]))

    expected = within(x) + within(y) - 2 * np.mean([cube(a, b) for a in x for b in y])
    assert kernel(x, y) == pytest.approx(expected, rel=1e-12)
    assert kernel(x.astype(np.float32), y) == pytest.approx(expected, rel=1e-6)


def test_the_kernel_distance_of_sets_of_one_kind_is_zero_in_the_mean_whatever_their_size() -> None:
    random = np.random.default_rng(1)
    found = np.asarray([kernel(random.normal(size=(6, 2)), random.normal(size=(9, 2))) for _ in range(2000)])
    assert abs(found.mean()) < 4 * found.std() / math.sqrt(len(found)) and np.any(found < 0)
    # E k(x, x') = 1 + 3 E(x.x'/2)^2 = 2.5 for independent normal x, x' of two dimensions; of moved ones more.
    moved = np.asarray([kernel(random.normal(size=(6, 2)), random.normal(size=(9, 2)) + 1) for _ in range(2000)])
    assert moved.mean() > 20 * moved.std() / math.sqrt(len(moved))


def test_the_inception_score_is_one_without_knowledge_and_the_number_of_classes_with_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    unsure = np.full((20, 4), math.log(0.25))
    assert inception_score(unsure) == pytest.approx(1)
    sure = np.log(np.maximum(np.eye(4)[np.arange(20) % 4], 1e-30))
    assert inception_score(sure) == pytest.approx(4)
    one_kind = np.log(np.maximum(np.eye(4)[np.zeros(20, int)], 1e-30))
    assert inception_score(one_kind) == pytest.approx(1)
    monkeypatch.setattr(distances, "SCORED", 10)  # parts as nearly of ten as can be, none left over
    assert inception_score(sure[[*range(20), 0]]) == pytest.approx(np.exp([math.log(4)] * 2).mean(), rel=0.02)
    # Two parts: four classes, then one.
    assert inception_score(np.concatenate([sure[:8], sure[:2], one_kind[:10]])) == pytest.approx(
        (inception_score(sure[[*range(8), 0, 1]]) + 1) / 2
    )
