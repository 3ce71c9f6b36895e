"""python -m benchmarks.digits_quality samples.npz [--out=quality.json]: are sampled digits right, varied and new?

The classifier is trained apart from the model: a support vector machine on scikit-learn's 1,797 real digits. Each
figure comes with the real data's own value:

    accuracy    share of samples that the classifier gives their label     (real: 5-fold cross-validation)
    variety     per-class pixel standard deviation, mean, over the real    (real: 1)
    novelty     mean distance to the nearest training image, over the real data's leave-one-out distance (real: 1)

Exit code 1 if a figure is below its bound. `images` is uint8 (N, 8, 8, 1), `labels` int32 (N,).
"""

from __future__ import annotations

import argparse
import pathlib
import sys

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import cross_val_score
from sklearn.neighbors import NearestNeighbors
from sklearn.svm import SVC

from benchmarks.machine import say, write

BOUNDS = {"accuracy": 0.97, "variety": 0.85, "novelty": 0.90}


def class_spread(images: np.ndarray, labels: np.ndarray) -> float:
    """Standard deviation of each pixel within each class, averaged over pixels and classes."""
    return float(np.mean([images[labels == label].std(axis=0).mean() for label in np.unique(labels)]))


def measure(images: np.ndarray, labels: np.ndarray) -> dict[str, dict[str, float]]:
    """{"samples": figures, "real": figures} for uint8 images (N, 8, 8, 1) and labels (N,)."""
    digits = load_digits()
    real, x = digits.data, images.reshape(len(images), 64).astype(np.float64) * (16 / 255)
    classifier = SVC(gamma=0.001)
    cross_validated = cross_val_score(classifier, real, digits.target, cv=5).mean()
    neighbours = NearestNeighbors().fit(real)
    own_distance = neighbours.kneighbors(real, 2)[0][:, 1].mean()
    return {
        "samples": {
            "accuracy": float(classifier.fit(real, digits.target).score(x, labels)),
            "variety": class_spread(x, labels) / class_spread(real, digits.target),
            "novelty": float(neighbours.kneighbors(x, 1)[0].mean() / own_distance),
        },
        "real": {"accuracy": float(cross_validated), "variety": 1.0, "novelty": 1.0},
    }


def main() -> int:
    """Show the table; 0 if every bound is met, else 1."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("npz", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path, help="also write the figures as JSON")
    args = parser.parse_args()
    with np.load(args.npz) as archive:
        figures = measure(archive["images"], archive["labels"])
    say(f"{'':10}{'samples':>9}{'real':>9}{'bound':>9}")
    for name, bound in BOUNDS.items():
        say(f"{name:10}{figures['samples'][name]:9.3f}{figures['real'][name]:9.3f}{bound:9.2f}")
    write(figures, args.out)
    return int(any(figures["samples"][name] < bound for name, bound in BOUNDS.items()))


if __name__ == "__main__":
    sys.exit(main())
