"""Whether samples are right, varied and not copied, by their neighbourhoods in feature space."""

from __future__ import annotations

import numpy as np
from sklearn.metrics import pairwise_distances_chunked
from sklearn.neighbors import NearestNeighbors

PRECISION_K = 3  # neighbours that make a ball of precision and recall, as published
DENSITY_K = 5  # and of density and coverage
FEWEST = DENSITY_K + 1  # images
ROUNDING = 1e-7  # of a distance, over the longest vector of features


def compare(
    real: np.ndarray, drawn: np.ndarray, near: np.ndarray | None = None, drawn_near: np.ndarray | None = None
) -> dict[str, float]:
    """Figures of drawn images compared with real ones; features (N, D) and (M, D), N and M at least 6.

    precision: share of drawn images inside a ball around a real one that reaches its third neighbour.
    recall: share of real images inside such a ball around a drawn one (Kynkäänniemi et al. 2019, Eq. 1-2).
    density: how many such balls, to the fifth neighbour, an image drawn is in, over five.
    coverage: share of those balls with an image drawn inside (Naeem et al. 2020, Eq. 4-5).
    novelty: mean distance of an image drawn to the nearest real one, over that of a real one to the nearest other;
        far below 1, images are copies. Left out where each real image is there twice.

    Args:
        real, drawn: the features.
        near, drawn_near: `radii` of either, where they are known.
    """
    near = radii(real) if near is None else near
    drawn_near = radii(drawn) if drawn_near is None else drawn_near
    slack = ROUNDING * max(_longest(real), _longest(drawn))  # a border belongs to its ball, however it is rounded
    precise, recalled, covered = np.zeros(len(drawn), bool), np.zeros(len(real), bool), np.zeros(len(real), bool)
    nearest, inside, row = np.zeros(len(drawn)), 0, 0
    for distances in pairwise_distances_chunked(drawn, real):
        rows = slice(row, row + len(distances))
        precise[rows] = np.any(distances <= near[:, PRECISION_K - 1] + slack, axis=1)
        recalled |= np.any(distances <= drawn_near[rows, PRECISION_K - 1, None] + slack, axis=0)
        balls = distances <= near[:, DENSITY_K - 1] + slack
        covered |= np.any(balls, axis=0)
        inside += int(np.count_nonzero(balls))
        nearest[rows] = distances.min(axis=1)
        row += len(distances)
    figures = {
        "precision": float(precise.mean()),
        "recall": float(recalled.mean()),
        "density": inside / (DENSITY_K * len(drawn)),
        "coverage": float(covered.mean()),
    }
    apart = near[:, 0].mean()
    return figures | ({"novelty": float(nearest.mean() / apart)} if apart > slack else {})


def radii(features: np.ndarray) -> np.ndarray:
    """(N, 5) distances of each image to the nearest others."""
    search = NearestNeighbors(n_neighbors=DENSITY_K, algorithm="brute").fit(features)
    return search.kneighbors()[0]


def _longest(features: np.ndarray) -> float:
    return float(np.sqrt(np.max(np.einsum("nd,nd->n", features, features, dtype=np.float64))))
