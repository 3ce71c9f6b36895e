"""Aspect buckets: images of like proportions make up a batch, so that little of them is cut off.

Podell et al. 2023 (SDXL), Sec. 2.3 and the list in the appendix: sides are multiples of 64 and areas near 1024^2. Which
bucket and which images a step has is a function of the step: an epoch has floor(n / B) batches of the n images of each
bucket, and all its batches are shuffled, as are the images of each bucket.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import os
from collections.abc import Sequence

import numpy as np
from absl import logging

from archirf_jax.data.dataset import Dataset
from archirf_jax.data.images import UNREADABLE, sides_of
from archirf_jax.data.order import example_at
from archirf_jax.errors import listed

Sides = tuple[int, int]  # height and width


@dataclasses.dataclass(frozen=True, eq=False)
class BucketOrder:
    """The examples of every step, all of one bucket.

    Attributes:
        sides: height and width of each bucket, (S, 2).
        members: numbers of the examples of each bucket, at least a batch.
        batch_size: examples a step.
        seed: of the order, 0 to 2**32 - 1.
    """

    sides: tuple[Sides, ...]
    members: tuple[np.ndarray, ...]
    batch_size: int
    seed: int

    @functools.cached_property
    def ends(self) -> np.ndarray:
        """(S,) batches of an epoch up to the end of each bucket, before they are shuffled."""
        return np.cumsum([len(numbers) // self.batch_size for numbers in self.members])

    def at(self, position: int) -> tuple[int, Sides]:
        """(the example at a position of the run, height and width of its bucket)."""
        step, row = divmod(position, self.batch_size)
        batches = int(self.ends[-1])
        batch = example_at(self.seed, batches, step)
        bucket = int(np.searchsorted(self.ends, batch, side="right"))
        numbers = self.members[bucket]
        place = (batch - int(self.ends[bucket])) % (len(numbers) // self.batch_size) * self.batch_size + row
        # The bucket's own shuffle of the same epoch.
        chosen = example_at((self.seed + 1 + bucket) % 2**32, len(numbers), step // batches * len(numbers) + place)
        return int(numbers[chosen]), self.sides[bucket]


def nearest(originals: np.ndarray, sides: Sequence[Sides]) -> np.ndarray:
    """(N,) the bucket whose logarithm of height over width is nearest, for originals (N, 2)."""
    ours, theirs = (np.log(each[:, 0] / each[:, 1]) for each in (np.asarray(originals), np.asarray(sides)))
    return np.argmin(np.abs(ours[:, None] - theirs), axis=1)


def assigned(originals: np.ndarray, sides: Sequence[Sides], batch_size: int) -> list[tuple[Sides, np.ndarray]]:
    """The buckets that are used and the numbers of their examples.

    Of a bucket that cannot fill a batch the images go to the nearest of the others, the emptiest bucket first.

    Args:
        originals: (N, 2) height and width of each image, at least a batch of them.
        sides: of all buckets.
        batch_size: fewest images of a bucket.
    """
    left = list(sides)
    while True:
        chosen = nearest(originals, left)
        counts = np.bincount(chosen, minlength=len(left))
        left = [each for each, count in zip(left, counts, strict=True) if count]
        counts = counts[counts > 0]
        if counts.min() >= batch_size:
            break
        del left[int(np.argmin(counts))]
    chosen = nearest(originals, left)
    return [(each, np.flatnonzero(chosen == i)) for i, each in enumerate(left)]


def bucket_order(dataset: Dataset, sides: Sequence[Sides], batch_size: int, seed: int) -> BucketOrder:
    """The order of a set's examples, whose headers are read for their proportions."""
    used = assigned(original_sides(dataset), sides, batch_size)
    logging.info("buckets: %s", listed([f"{h}x{w} ({len(numbers)} images)" for (h, w), numbers in used]))
    return BucketOrder(tuple(each for each, _ in used), tuple(numbers for _, numbers in used), batch_size, seed)


def original_sides(dataset: Dataset) -> np.ndarray:
    """(N, 2) height and width of each readable image; (1, 1) of one that cannot be read any more."""

    def one(index: int) -> Sides:
        try:
            return sides_of(dataset.source[int(index)]["image"])
        except UNREADABLE:  # it is named when its turn comes
            return 1, 1

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return np.asarray(list(pool.map(one, dataset.readable)))
