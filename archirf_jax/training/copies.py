"""Copies that a checkpoint is written from while the training goes on.

Accelerators copy to the host anyway. On a CPU the host sees the arrays themselves, and a step that gives away what is
still being written has to move to new memory, page by page, which takes several times as long as a copy made here.
"""

from __future__ import annotations

import concurrent.futures
import os
from typing import Any

import jax
import numpy as np

ALIGNED = 64  # bytes; what is not aligned XLA copies again


def of_cpu(tree: Any) -> Any:
    """The arrays of a tree, copied where they lie on a CPU, and placed as before; others as they are.

    What every device of one process holds is copied from one of them: Orbax would save a slice of each, and compile a
    program for every slice.
    """
    leaves, shape = jax.tree.flatten(tree)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return jax.tree.unflatten(shape, pool.map(_copied, leaves))


def _copied(leaf: Any) -> Any:
    if not isinstance(leaf, jax.Array) or any(shard.device.platform != "cpu" for shard in leaf.addressable_shards):
        return leaf
    if leaf.is_fully_replicated and leaf.is_fully_addressable:
        return _copied_part(leaf.addressable_shards[0])
    parts = [_copied_part(shard) for shard in leaf.addressable_shards]
    return jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding, parts)


def _copied_part(shard: Any) -> jax.Array:
    values = np.asarray(shard.data)
    memory = np.empty(values.nbytes + ALIGNED, np.uint8)  # numpy asks for large pages, XLA does not
    begin = -memory.ctypes.data % ALIGNED
    copy = memory[begin : begin + values.nbytes].view(values.dtype).reshape(values.shape)
    np.copyto(copy, values)
    return jax.device_put(copy, shard.device, may_alias=True)
