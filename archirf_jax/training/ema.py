"""The moving average of the parameters that samples are drawn with."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def update(ema: Any, params: Any, decay: float, step: jax.Array) -> Any:
    """ema + (1 - d) (params - ema) with d = min(decay, (1 + step) / (10 + step)): early averages forget the start.

    Args:
        ema: the average, float32.
        params: the parameters after the update.
        decay: in [0, 1).
        step: updates before this one.
    """
    warm = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda a, p: a + (1 - warm) * (p - a), ema, params)
