"""Features of a small classifier of the real digits, trained on these alone, and the Frechet distance in them.

The distance between normal distributions fitted to the features of two sets of images, as in the Frechet inception
distance (Heusel et al. 2017), with a network of one hidden layer trained on the real digits in the inception network's
place. Only distances of sets of the same size compare.
"""

from __future__ import annotations

import functools

import numpy as np
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier

from archirf_jax.evaluation import distances
from archirf_jax.evaluation.statistics import moments

UNITS = 64


@functools.cache
def _classifier() -> MLPClassifier:
    digits = load_digits()
    return MLPClassifier((UNITS,), max_iter=1000, random_state=0).fit(digits.data / 16, digits.target)


def real_images() -> np.ndarray:
    """The 1,797 real digits, uint8 (N, 8, 8, 1)."""
    return np.round(load_digits().data * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)


def features(images: np.ndarray) -> np.ndarray:
    """(N, UNITS) activations of the hidden layer for uint8 images (N, 8, 8, 1)."""
    classifier = _classifier()
    return np.maximum(_flat(images) @ classifier.coefs_[0] + classifier.intercepts_[0], 0)


def accuracy(images: np.ndarray, labels: np.ndarray) -> float:
    """Share of images that the classifier gives their label."""
    return float(_classifier().score(_flat(images), labels))


def frechet(first: np.ndarray, second: np.ndarray) -> float:
    """The Frechet distance between two sets of features (N, D)."""
    return distances.frechet(moments(first), moments(second))


def of_real(count: int, repeats: int = 20) -> float:
    """The mean Frechet distance of `count` real digits, drawn with replacement, to all of them."""
    real, random = features(real_images()), np.random.default_rng(0)
    whole = moments(real)
    drawn = (moments(real[random.integers(0, len(real), count)]) for _ in range(repeats))
    return float(np.mean([distances.frechet(each, whole) for each in drawn]))


def _flat(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), 64).astype(np.float64) / 255
