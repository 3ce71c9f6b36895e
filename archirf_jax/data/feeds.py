"""Feeds: batches on the device, in the order of `data.order`.

A feed serves the training loop in two halves: `chunk(step, most)` on the host, and `batch(chunk, i, key)` inside jit.
A set that fits in memory is decoded once and lies on the device; its chunk is those arrays and the place in the order.
A larger set, or one that is decoded at random, streams through Grain; its chunk holds the next batch. Both visit the
same examples at the same step.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from archirf_jax import sharding
from archirf_jax.contracts import Batch
from archirf_jax.data.buckets import BucketOrder, bucket_order
from archirf_jax.data.dataset import Dataset
from archirf_jax.data.fields import Arrays, Fields, finish
from archirf_jax.data.order import example_at, shuffled_index
from archirf_jax.errors import UserError


@dataclasses.dataclass
class ResidentFeed:
    """A decoded set on the device, gathered inside jit.

    Attributes:
        arrays: decoded examples (N, ...) by name.
        fields: how they are finished.
        batch_size: examples a batch.
        seed: of the order, 0 to 2**32 - 1.
        dispatch: most steps that a chunk may serve.
    """

    arrays: dict[str, jax.Array]
    fields: Fields
    batch_size: int
    seed: int
    dispatch: int

    def chunk(self, step: int, most: int) -> tuple[Any, int]:
        """The arrays and the place of `step` in the order, computed with Python's unbounded integers."""
        epoch, index = divmod(step * self.batch_size, _length(self.arrays))
        return (self.arrays, np.uint32(epoch), np.uint32(index)), min(most, self.dispatch)

    def batch(self, chunk: Any, i: jax.Array, key: jax.Array) -> Batch:
        """The i-th batch of the chunk; key decides augmentations."""
        arrays, epoch, index = chunk
        size = _length(arrays)
        place = index + jnp.asarray(i, jnp.uint32) * self.batch_size + jnp.arange(self.batch_size, dtype=jnp.uint32)
        chosen = shuffled_index(self.seed, size, epoch + place // size, place % size)
        return finish(self.fields, {name: array[chosen] for name, array in arrays.items()}, key)

    def close(self) -> None:
        """Nothing to release."""


@dataclasses.dataclass
class StreamFeed:
    """A set that is decoded as it is needed, by Grain's threads; steps must be asked for in turn.

    Each process decodes the examples that its devices need.

    Attributes:
        dataset: the set.
        batch_size: examples a batch.
        seed: of the order and of fields that draw, 0 to 2**32 - 1.
        steps: where the run ends.
        mesh: has the devices.
        dispatch: steps that a chunk serves.
        buckets: the order of a set whose batches differ in shape.
    """

    dataset: Dataset
    batch_size: int
    seed: int
    steps: int
    mesh: Mesh
    dispatch: int = 1
    buckets: BucketOrder | None = None
    _batches: Iterator[Any] | None = None

    def chunk(self, step: int, most: int) -> tuple[Any, int]:
        """The next batch, decoded arrays (B, ...).

        Raises:
            UserError: an example cannot be read any more.
        """
        del most
        if self._batches is None:
            self._batches = self._open(step)
        place = sharding.of_batch(self.mesh)
        batch = next(self._batches)
        return {name: jax.make_array_from_process_local_data(place, array) for name, array in batch.items()}, 1

    def batch(self, chunk: Any, i: jax.Array, key: jax.Array) -> Batch:
        """The chunk's only batch."""
        del i
        return finish(self.dataset.fields, chunk, key)

    def close(self) -> None:
        """Stop reading ahead; the next chunk may be of any step."""
        self._batches = None

    def _open(self, step: int) -> Iterator[Any]:
        import grain

        rows = sharding.own_rows(self.mesh, self.batch_size)

        def position(number: int) -> int:
            later, row = divmod(int(number), len(rows))
            return (step + later) * self.batch_size + int(rows[row])

        numbers = grain.MapDataset.range(0, (self.steps - step) * len(rows))
        examples = numbers.map(position).map(self._example).batch(len(rows))
        threads = min(16, 2 * (os.cpu_count() or 1))
        return iter(examples.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=8)))

    def _example(self, position: int) -> Arrays:
        if self.buckets is None:
            return self.dataset.example(example_at(self.seed, len(self.dataset), position), self.seed, position)
        chosen, sides = self.buckets.at(position)
        return self.dataset.example(chosen, self.seed, position, sides)


def make_feed(dataset: Dataset, config: Any) -> ResidentFeed | StreamFeed:
    """The feed for a loaded data set: resident where its examples are decoded, streaming otherwise.

    Raises:
        UserError: a batch larger than the set, or one that does not divide among the devices.
    """
    if config.batch_size > len(dataset):
        name = dataset.settings["name"]
        raise UserError("batch_size", config.batch_size, f"is larger than the {len(dataset)} examples of {name!r}")
    mesh = sharding.from_config(config)
    sharding.check_batch(mesh, config.batch_size, config.accumulation)
    seed = config.seed % 2**32
    if sides := getattr(dataset.fields.get("image"), "buckets", ()):
        buckets = bucket_order(dataset, sides, config.batch_size, seed)
        return StreamFeed(dataset, config.batch_size, seed, config.steps, mesh, buckets=buckets)
    if dataset.arrays is None:
        return StreamFeed(dataset, config.batch_size, seed, config.steps, mesh)
    arrays = jax.device_put(dataset.arrays, sharding.whole(mesh))
    return ResidentFeed(arrays, dataset.fields, config.batch_size, seed, config.steps_per_dispatch)


def _length(arrays: dict[str, jax.Array]) -> int:
    return next(iter(arrays.values())).shape[0]
