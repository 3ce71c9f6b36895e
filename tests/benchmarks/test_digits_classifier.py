"""The Frechet distance of known normal distributions; the classifier ranks digits by how good they are."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.digits_classifier import accuracy, features, frechet, real_images
from benchmarks.digits_likelihood import of_normal
from benchmarks.runs import evaluations, steps_within

RANDOM = np.random.default_rng(0)


def moments_exactly(mean: np.ndarray, covariance: np.ndarray, count: int = 500) -> np.ndarray:
    """Points whose sample mean and covariance are these."""
    z = RANDOM.normal(size=(count, len(mean)))
    z = (z - z.mean(axis=0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(z, rowvar=False))).T
    return mean + z @ np.linalg.cholesky(covariance).T


def test_the_distance_of_normal_distributions_is_the_closed_form() -> None:
    """For commuting covariances it is |m - n|^2 + |a^(1/2) - b^(1/2)|^2."""
    m, n = np.asarray([1.0, 0.0, -1.0]), np.asarray([0.5, 0.5, 0.5])
    rotation = np.linalg.qr(RANDOM.normal(size=(3, 3)))[0]
    a, b = np.asarray([1.0, 4.0, 9.0]), np.asarray([4.0, 1.0, 0.25])
    first = moments_exactly(m, rotation @ np.diag(a) @ rotation.T)
    second = moments_exactly(n, rotation @ np.diag(b) @ rotation.T)
    expected = np.sum((m - n) ** 2) + np.sum((np.sqrt(a) - np.sqrt(b)) ** 2)
    assert frechet(first, second) == pytest.approx(expected, rel=1e-6)
    assert frechet(second, first) == pytest.approx(expected, rel=1e-6)
    assert frechet(first, first) == pytest.approx(0, abs=1e-6)


def test_blurred_digits_are_far_from_real_ones_and_shuffled_ones_farther() -> None:
    images = real_images()
    real = features(images)
    half = frechet(real[::2], real[1::2])
    pixels = RANDOM.permutation(64)
    shuffled = images.reshape(-1, 64)[:, pixels].reshape(images.shape)
    blurred = ((images.astype(int) + np.roll(images, 1, axis=1)) // 2).astype(np.uint8)
    assert frechet(features(shuffled), real) > frechet(features(blurred), real) > 3 * half
    assert accuracy(images, np.argmax(np.eye(10)[np.zeros(len(images), int)], axis=1)) < 0.2


def test_bits_of_a_normal_distribution_are_those_of_its_entropy() -> None:
    std = 0.3
    train, test = RANDOM.normal(0, std, (4000, 4)), RANDOM.normal(0, std, (4000, 4))
    width = 2 / 16
    total = std**2 + width**2 / 12
    expected = 0.5 * np.log2(2 * np.pi * np.e * total) - np.log2(width)
    assert np.mean(of_normal(train, test)) == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("solver", ["euler", "heun", "midpoint", "edm", "dpmpp_2m"])
@pytest.mark.parametrize("budget", [5, 10, 41])
def test_a_budget_is_used_and_not_passed(solver: str, budget: int) -> None:
    steps = steps_within(solver, budget)
    assert evaluations(solver, steps) <= budget < evaluations(solver, steps + 1)
