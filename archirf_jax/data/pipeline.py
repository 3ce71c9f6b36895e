"""Examples as batches on the device, in the order of `data.order`.

A feed serves the training loop in two halves: `chunk(step, n)` on the host, and `batch(chunk, i, key)` inside jit,
which gives the i-th of the chunk's n batches. A set that fits in memory is decoded once and lies on the device; its
chunk is that array and the place in the order. A larger set streams through Grain; its chunk holds the next batch.
Both visit the same examples at the same step.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh

from archirf_jax import sharding
from archirf_jax.data.images import UNREADABLE, decode
from archirf_jax.data.order import shuffled_index
from archirf_jax.data.sources import Source, open_source
from archirf_jax.errors import UserError


class Batch(NamedTuple):
    """image (B, H, W, C) float32 in [-1, 1], label (B,) int32."""

    image: jax.Array
    label: jax.Array


class Dataset(NamedTuple):
    """A source and how to decode it."""

    source: Source
    readable: np.ndarray  # (examples,) numbers in the source, the unreadable ones left out
    images: np.ndarray | None  # (examples, S, S, C) uint8 where the set fits in memory
    labels: np.ndarray | None  # (examples,) int32, known with the images


def load(data: Any) -> Dataset:
    """Open, check and, where it fits, decode the set that `config.data` names.

    Raises:
        UserError: as `open_source`; or unreadable images, unless data.skip_unreadable.
    """
    if data.channels not in (1, 3):
        raise UserError(f"config.data.channels: {data.channels} must be 1 (grey) or 3 (RGB)")
    source = open_source(data.name, directory=data.dir, split=data.split, label_key=data.label_key)
    shape = (len(source), data.image_size, data.image_size, data.channels)
    fits = np.prod(shape, dtype=np.int64) <= data.resident_mib * 2**20
    if not fits and source.checked:
        return Dataset(source, np.arange(len(source)), None, None)
    images = np.empty(shape, np.uint8) if fits else None
    labels = np.zeros(len(source), np.int32)

    def read(index: int) -> str | None:
        try:
            encoded, labels[index] = source[index]
            image = decode(encoded, data.image_size, data.channels)
        except UNREADABLE as e:
            return f"{source.describe(index)}: {e}"
        if images is not None:
            images[index] = image
        return None

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        problems = list(pool.map(read, range(len(source))))
    readable = _readable(problems, data)
    return Dataset(source, readable, images[readable] if images is not None else None, labels[readable])


def _readable(problems: list[str | None], data: Any) -> np.ndarray:
    bad = [problem for problem in problems if problem]
    for problem in bad:
        logging.warning("unreadable: %s", problem)
    readable = np.flatnonzero([problem is None for problem in problems])
    if bad and not (data.skip_unreadable and len(readable)):
        raise UserError(
            f"config.data.name: {len(bad)} of {len(problems)} images in {data.name!r} cannot be read (listed above); "
            "mend them, or leave them out by --config.data.skip_unreadable=True"
        )
    return readable


@dataclasses.dataclass
class ResidentFeed:
    """A decoded set on the device, gathered inside jit.

    Attributes:
        images: (N, H, W, C) uint8. labels: (N,) int32.
        batch_size: examples a batch. seed: of the order. flip: mirror each image with probability 1/2.
        dispatch: most steps a chunk may serve.
    """

    images: jax.Array
    labels: jax.Array
    batch_size: int
    seed: int
    flip: bool
    dispatch: int

    def chunk(self, step: int, n: int) -> Any:
        """The arrays and the place of `step` in the order, computed with Python's unbounded integers."""
        epoch, index = divmod(step * self.batch_size, len(self.images))
        return self.images, self.labels, np.uint32(epoch), np.uint32(index)

    def batch(self, chunk: Any, i: jax.Array, key: jax.Array) -> Batch:
        """The i-th batch of the chunk; key decides the flips."""
        images, labels, epoch, index = chunk
        size = images.shape[0]
        place = index + jnp.asarray(i, jnp.uint32) * self.batch_size + jnp.arange(self.batch_size, dtype=jnp.uint32)
        chosen = shuffled_index(self.seed, size, epoch + place // size, place % size)
        return finish(images[chosen], labels[chosen], self.flip, key)

    def close(self) -> None:
        """Nothing to release."""


@dataclasses.dataclass
class StreamFeed:
    """A set that is decoded as it is needed, by Grain's threads; steps must be asked for in turn.

    Each process decodes the examples that its devices need.

    Attributes: as ResidentFeed; `steps` is where the run ends, `mesh` has the devices.
    """

    dataset: Dataset
    image_size: int
    channels: int
    batch_size: int
    seed: int
    flip: bool
    steps: int
    mesh: Mesh
    dispatch: int = 1
    _batches: Iterator[Any] | None = None

    def chunk(self, step: int, n: int) -> Any:
        """The next batch, uint8 images (B, H, W, C) and labels (B,)."""
        if self._batches is None:
            self._batches = self._open(step)
        place = sharding.of_batch(self.mesh)
        return [jax.make_array_from_process_local_data(place, array) for array in next(self._batches)]

    def batch(self, chunk: Any, i: jax.Array, key: jax.Array) -> Batch:
        """The chunk's only batch."""
        images, labels = chunk
        return finish(images, labels, self.flip, key)

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

    def _example(self, position: int) -> tuple[np.ndarray, np.int32]:
        size = len(self.dataset.readable)
        epoch, index = divmod(position, size)
        place = np.asarray([epoch % 2**32], np.uint32), np.asarray([index], np.uint32)
        chosen = shuffled_index(self.seed, size, *place)[0]
        encoded, label = self.dataset.source[int(self.dataset.readable[chosen])]
        return decode(encoded, self.image_size, self.channels), np.int32(label)


def make_feed(dataset: Dataset, config: Any) -> ResidentFeed | StreamFeed:
    """The feed for a loaded data set: resident where its images are decoded, streaming otherwise.

    Raises:
        UserError: a batch larger than the set, or one that does not divide among the devices.
    """
    size = len(dataset.readable)
    if config.batch_size > size:
        raise UserError(
            f"config.batch_size: {config.batch_size} is larger than the {size} images of {config.data.name!r}"
        )
    mesh = sharding.from_config(config)
    sharding.check_batch(mesh, config.batch_size, config.accumulation)
    common = dict(batch_size=config.batch_size, seed=config.seed % 2**32, flip=config.data.flip)
    if dataset.images is None:
        shape = config.data.image_size, config.data.channels
        return StreamFeed(dataset, *shape, steps=config.steps, mesh=mesh, **common)
    images, labels = jax.device_put((dataset.images, dataset.labels), sharding.whole(mesh))
    return ResidentFeed(images, labels, dispatch=config.steps_per_dispatch, **common)


def finish(images: jax.Array, labels: jax.Array, flip: bool, key: jax.Array) -> Batch:
    """A batch of decoded images (B, H, W, C) uint8; `flip` mirrors some of them."""
    # In this order -1 and 1 come out exactly, also where XLA multiplies by the reciprocal.
    x = (images.astype(jnp.float32) - 127.5) / 127.5
    if flip:
        mirrored = jax.random.bernoulli(key, 0.5, (x.shape[0], 1, 1, 1))
        x = jnp.where(mirrored, x[:, :, ::-1], x)
    return Batch(x, labels)
