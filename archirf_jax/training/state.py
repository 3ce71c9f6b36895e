"""What a run carries from step to step, and how random keys are derived."""

from __future__ import annotations

import zlib
from typing import Any

import flax.struct
import jax


@flax.struct.dataclass
class TrainState:
    """Everything a checkpoint restores.

    Attributes:
        step: () int32, updates done.
        params: the network's parameters.
        ema: their moving average, float32.
        opt: the optimizer's state.
        memory: what the process remembers of earlier losses; () for most.
    """

    step: jax.Array
    params: Any
    ema: Any
    opt: Any
    memory: Any = ()


def purpose_key(seed: int, purpose: str) -> jax.Array:
    """The root key of "init", "step", "flip", "preview" or "sample"; steps and images are folded into it."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(purpose.encode()))
