"""How far two sets of images are from each other, by their features."""

from __future__ import annotations

from typing import Any

import numpy as np

from archirf_jax.evaluation.statistics import Moments

ROWS = 2048  # features that a block of the kernel's matrix has on a side
SCORED = 5000  # images that the inception score is computed from at a time, as nearly as their number allows


def frechet(first: Moments, second: Moments) -> float:
    """The squared Fréchet distance of the normal distributions with these moments (Heusel et al. 2017, Eq. 6).

    With Inception's features it is the FID. It falls with the number of images; only distances of as many compare.
    """
    a, b = first.covariance, second.covariance
    means = first.mean - second.mean
    # The trace of the root of a b is that of the symmetric root of a^(1/2) b a^(1/2), which is real.
    values, vectors = np.linalg.eigh(a)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    cross = np.sum(np.sqrt(np.maximum(np.linalg.eigvalsh(root @ b @ root), 0)))
    return float(means @ means + np.trace(a) + np.trace(b) - 2 * cross)


def kernel(
    first: np.ndarray, second: np.ndarray, within_first: float | None = None, within_second: float | None = None
) -> float:
    """The squared maximum mean discrepancy under (x.y / D + 1)^3, without bias (Binkowski et al. 2018, Sec. 4).

    With Inception's features it is the KID, here of all pairs instead of the mean over small subsets, which has the
    same expectation. It may be below 0, and does not depend on the number of images in the mean.

    Args:
        first: features (N, D), N at least 2.
        second: features (M, D), M at least 2.
        within_first, within_second: `within` of either, where it is known.
    """
    of_first = within(first) if within_first is None else within_first
    of_second = within(second) if within_second is None else within_second
    return of_first + of_second - 2 * _sum(first, second) / (len(first) * len(second))


def within(features: np.ndarray) -> float:
    """The mean of the kernel over all pairs of different images."""
    count = len(features)
    return (_sum(features, features) - _diagonal(features)) / (count * (count - 1))


def inception_score(log_p: np.ndarray) -> float:
    """exp of the mean divergence of p(y | image) from p(y) (Salimans et al. 2016, Sec. 4), in parts of 5,000 images.

    Args:
        log_p: (N, K) logarithms of p(y | image).
    """
    scores = []
    for part in np.array_split(np.asarray(log_p, np.float64), max(1, round(len(log_p) / SCORED))):
        p = np.exp(part)
        marginal = np.log(np.maximum(p.mean(axis=0), 1e-300))
        scores.append(np.exp(np.mean(np.sum(p * (part - marginal), axis=1))))
    return float(np.mean(scores))


def _cube(products: Any, width: int) -> Any:
    x = products / width + 1
    return x * x * x  # far faster than a power


def _sum(first: np.ndarray, second: np.ndarray) -> float:
    """The sum of the kernel over all pairs."""
    total = 0.0
    for i in range(0, len(first), ROWS):
        rows = np.asarray(first[i : i + ROWS], np.float64)
        for j in range(i if first is second else 0, len(second), ROWS):
            block = np.sum(_cube(rows @ np.asarray(second[j : j + ROWS], np.float64).T, first.shape[1]))
            total += 2 * block if first is second and j > i else block
    return float(total)


def _diagonal(features: np.ndarray) -> float:
    squares = np.sum(np.square(np.asarray(features, np.float64)), axis=1)
    return float(np.sum(_cube(squares, features.shape[1])))
