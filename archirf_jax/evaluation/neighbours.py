"""What neighbourhoods in feature space tell of samples: whether they are right, varied, and not copied."""

from __future__ import annotations

import numpy as np
from sklearn.metrics import pairwise_distances_chunked
from sklearn.neighbors import NearestNeighbors

PRECISION_K = 3  # neighbours that make a ball of precision and recall, as published
DENSITY_K = 5  # and of density and coverage
FEWEST = DENSITY_K + 1  # images


def compare(real: np.ndarray, drawn: np.ndarray) -> dict[str, float]:
    """Figures of drawn images beside real ones; features (N, D) and (M, D), N and M at least 6.

    precision: share of drawn images inside a ball around a real one that reaches its third neighbour.
    recall: share of real images inside such a ball around a drawn one (Kynkäänniemi et al. 2019, Eq. 1-2).
    density: how many such balls, to the fifth neighbour, an image drawn is in, over five.
    coverage: share of those balls with an image drawn inside (Naeem et al. 2020, Eq. 4-5).
    novelty: mean distance of an image drawn to the nearest real one, over that of a real one to the nearest other;
        far below 1, images are copies.
    """
    near, drawn_near = _radii(real), _radii(drawn)
    precise, recalled, covered = np.zeros(len(drawn), bool), np.zeros(len(real), bool), np.zeros(len(real), bool)
    nearest, inside, row = np.zeros(len(drawn)), 0, 0
    for distances in pairwise_distances_chunked(drawn, real):
        rows = slice(row, row + len(distances))
        precise[rows] = np.any(distances <= near[:, PRECISION_K - 1], axis=1)
        recalled |= np.any(distances <= drawn_near[rows, PRECISION_K - 1, None], axis=0)
        balls = distances <= near[:, DENSITY_K - 1]
        covered |= np.any(balls, axis=0)
        inside += int(np.count_nonzero(balls))
        nearest[rows] = distances.min(axis=1)
        row += len(distances)
    return {
        "precision": float(precise.mean()),
        "recall": float(recalled.mean()),
        "density": inside / (DENSITY_K * len(drawn)),
        "coverage": float(covered.mean()),
        "novelty": float(nearest.mean() / max(near[:, 0].mean(), 1e-30)),
    }


def _radii(features: np.ndarray) -> np.ndarray:
    """(N, DENSITY_K) distances to the nearest others."""
    search = NearestNeighbors(n_neighbors=DENSITY_K, algorithm="brute").fit(features)
    return search.kneighbors()[0]
