"""The endless, shuffled, resumable order of examples: a pure function of (seed, position), on the host and inside jit.

Position p of the sequence belongs to epoch p // size; each epoch is a permutation of its own, so every example is
visited exactly once an epoch and any position can be computed without the ones before it. The permutation is the
swap-or-not shuffle (Hoang, Morris & Rogaway 2012, "An Enciphering Scheme Based on a Card Shuffle", Fig. 1): every
round pairs x with key - x and swaps the pair or not by a hash of its larger member, hence is a bijection.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

ROUNDS = 40


def shuffled_index(seed: int, size: int, epoch: Any, index: Any) -> Any:
    """The example at place `index` of `epoch`.

    Args:
        seed: 0 to 2**32 - 1.
        size: number of examples, 1 to 2**31.
        epoch: uint32 array.
        index: uint32 array of the same shape, below size.

    Returns:
        uint32 array of example numbers: numpy for numpy, jax for jax.
    """
    xp = np if isinstance(index, np.ndarray) else jnp
    n = xp.asarray(size, xp.uint32)
    stream = _hash(xp.asarray(epoch, xp.uint32) + xp.asarray(_scramble(seed), xp.uint32))
    x = xp.asarray(index, xp.uint32)
    for r in range(ROUNDS):
        key = _hash(stream + xp.asarray(_scramble(r + 1), xp.uint32))
        partner = (key % n + n - x) % n
        swap = _hash(xp.maximum(x, partner) ^ key) & 1
        x = xp.where(swap == 1, partner, x)
    return x


def example_at(seed: int, size: int, position: int) -> int:
    """The example at a position of the endless order, on the host; position may be any size."""
    epoch, index = divmod(position, size)
    return int(shuffled_index(seed, size, np.asarray([epoch % 2**32], np.uint32), np.asarray([index], np.uint32))[0])


def _hash(x: Any) -> Any:
    """Murmur3's 32-bit finaliser (Appleby): every input bit moves every output bit."""
    x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def _scramble(value: int) -> int:
    return (value * 0x9E3779B9 + 0x7F4A7C15) & 0xFFFFFFFF
