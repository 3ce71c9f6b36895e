"""One pass over a data set, each image once, in an order of one's own."""

from __future__ import annotations

import concurrent.futures
import os
from collections.abc import Iterator

import numpy as np

from archirf_jax.data.images import decode
from archirf_jax.data.pipeline import Dataset


def batches(
    dataset: Dataset, order: np.ndarray, size: int, image_size: int, channels: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """uint8 images (b, H, W, C) and labels (b,) int32 of the examples `order`, `size` at a time, the last ones fewer.

    Args:
        dataset: loaded.
        order: numbers below len(dataset.readable).
        size: most images a batch.
        image_size: pixels a side.
        channels: 1 or 3.
    """

    def example(index: int) -> tuple[np.ndarray, int]:
        encoded, label = dataset.source[int(dataset.readable[index])]
        return decode(encoded, image_size, channels), label

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for first in range(0, len(order), size):
            chosen = order[first : first + size]
            if dataset.images is not None and dataset.labels is not None:
                yield dataset.images[chosen], dataset.labels[chosen]
            else:
                images, labels = zip(*pool.map(example, chosen), strict=True)
                yield np.stack(images), np.asarray(labels, np.int32)
