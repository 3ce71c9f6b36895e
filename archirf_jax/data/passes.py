"""One pass over a data set, each example once, in an order of one's own."""

from __future__ import annotations

import concurrent.futures
import os
from collections.abc import Iterator

import numpy as np

from archirf_jax.data.dataset import Dataset
from archirf_jax.data.fields import Arrays


def batches(dataset: Dataset, order: np.ndarray, size: int) -> Iterator[Arrays]:
    """Decoded arrays (b, ...) by name, images uint8, of the examples `order`, `size` at a time, the last ones fewer.

    Args:
        dataset: loaded.
        order: numbers below len(dataset).
        size: most examples a batch.

    Raises:
        UserError: an example cannot be read any more.
    """

    def example(number: int) -> Arrays:
        return dataset.example(int(number), position=int(number))

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for first in range(0, len(order), size):
            chosen = order[first : first + size]
            if dataset.arrays is not None:
                yield {name: array[chosen] for name, array in dataset.arrays.items()}
            else:
                examples = list(pool.map(example, chosen))
                yield {name: np.stack([one[name] for one in examples]) for name in examples[0]}
