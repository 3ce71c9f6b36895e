"""Mean and covariance of features, gathered batch by batch in float64."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Moments(NamedTuple):
    """Moments of a set of features.

    Attributes:
        images: how many.
        mean: (D,) float64.
        scatter: (D, D) float64, the sum of products of deviations from the mean.
    """

    images: int
    mean: np.ndarray
    scatter: np.ndarray

    @property
    def covariance(self) -> np.ndarray:
        """(D, D), without bias; at least two images are needed."""
        return self.scatter / (self.images - 1)


def moments(features: np.ndarray) -> Moments:
    """The moments of features (N, D), N at least 1."""
    x = np.asarray(features, np.float64)
    mean = x.mean(axis=0)
    return Moments(len(x), mean, (x - mean).T @ (x - mean))


def merged(first: Moments, second: Moments) -> Moments:
    """The moments of both sets together (Chan, Golub & LeVeque 1983, Eq. 2.1), which no order of merging loses."""
    count, apart = first.images + second.images, second.mean - first.mean
    mean = first.mean + apart * (second.images / count)
    between = np.outer(apart, apart) * (first.images * second.images / count)
    return Moments(count, mean, first.scatter + second.scatter + between)
