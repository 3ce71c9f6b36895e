"""Times drawn in proportion to the root mean square of their latest losses.

Nichol & Dhariwal 2021, "Improved DDPM", Sec. 3.3, Eq. 18.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

HISTORY = 10  # latest losses kept of each time
UNIFORM_SHARE = 0.001  # of the probability, so that no time is forgotten


class LossHistory(NamedTuple):
    """The latest losses of each of n times; all zeros before the first step.

    Attributes:
        losses: (n, HISTORY) float32, a ring.
        written: (n,) int32, how many were recorded so far.
    """

    losses: jax.Array
    written: jax.Array


def init(n: int) -> LossHistory:
    """An empty history."""
    return LossHistory(jnp.zeros((n, HISTORY)), jnp.zeros(n, jnp.int32))


def probabilities(history: LossHistory) -> jax.Array:
    """(n,) probabilities of the times: uniform until each has HISTORY losses."""
    n = len(history.written)
    size = jnp.sqrt(jnp.mean(jnp.square(history.losses), axis=1))
    weighed = (1 - UNIFORM_SHARE) * size / jnp.maximum(jnp.sum(size), jnp.finfo(size.dtype).tiny) + UNIFORM_SHARE / n
    return jnp.where(jnp.all(history.written >= HISTORY), weighed, 1 / n)


def record(history: LossHistory, index: jax.Array, losses: jax.Array) -> LossHistory:
    """The history after a batch: losses (B,) of the times index (B,) int32, which may repeat."""
    same = index[:, None] == index[None, :]
    earlier = jnp.sum(jnp.tril(same, -1), axis=1)
    # Of more than HISTORY losses of one time only the last are kept: two writes to one place have no order.
    kept = jnp.sum(same, axis=1) - earlier <= HISTORY
    slot = (history.written[index] + earlier) % HISTORY
    row = jnp.where(kept, index, len(history.written))
    return LossHistory(
        history.losses.at[row, slot].set(losses, mode="drop"),
        history.written.at[index].add(1),
    )
