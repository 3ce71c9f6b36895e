"""What a run carries from step to step, and how random keys are derived."""

from __future__ import annotations

import zlib
from typing import Any

import flax.struct
import jax


@flax.struct.dataclass
class Guard:
    """What watches over the updates; each () and reset by nothing but a new run.

    Attributes:
        updates: int32, how many changed the parameters; schedules and averages count these.
        skipped: int32, how many did not, because loss or gradient were not finite.
        in_a_row: int32, of the latest skipped ones.
        stopped: int32, 0 or the reason (`guard.REASONS`) why the step of this state must not be done.
        mean, spread: float32, running mean of the losses and of their squared distance from it.
        scale: float32, what losses are multiplied with for float16 gradients; 1 for other dtypes.
        steady: int32, updates since the scale changed.
    """

    updates: jax.Array
    skipped: jax.Array
    in_a_row: jax.Array
    stopped: jax.Array
    mean: jax.Array
    spread: jax.Array
    scale: jax.Array
    steady: jax.Array


@flax.struct.dataclass
class TrainState:
    """Everything a checkpoint restores.

    Attributes:
        step: () int32, steps done: batches seen.
        params: the network's parameters.
        ema: their moving average, float32, that samples are drawn with.
        opt: the optimizer's state.
        memory: what the process remembers of earlier losses; () for most.
        averages: further averages by name, each like ema.
        guard: a `Guard`, () where nothing is trained.
    """

    step: jax.Array
    params: Any
    ema: Any
    opt: Any
    memory: Any = ()
    averages: Any = flax.struct.field(default_factory=dict)
    guard: Any = ()


def purpose_key(seed: int, purpose: str) -> jax.Array:
    """The root key of "init", "step", "flip", "preview" or "sample"; steps and images are folded into it."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(purpose.encode()))
