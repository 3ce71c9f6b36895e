"""How random keys are derived from a run's seed."""

from __future__ import annotations

import zlib

import jax


def purpose_key(seed: int, purpose: str) -> jax.Array:
    """The root key of "init", "step", "flip", "preview" or "sample"; steps and images are folded into it."""
    # The generator is named, so that no setting of jax changes the numbers of a run.
    return jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), zlib.crc32(purpose.encode()))
