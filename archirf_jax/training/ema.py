"""Moving averages of the parameters: the one that samples are drawn with, and further ones."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from archirf_jax.errors import UserError
from archirf_jax.training import power_ema

Decay = Callable[[jax.Array], jax.Array]  # updates done before -> the share of the old average that stays


def warmed(decay: float) -> Decay:
    """min(decay, (1 + n) / (10 + n)) after n updates: early averages forget the start."""
    return lambda updates: jnp.minimum(decay, (1 + updates) / (10 + updates))


def update(ema: Any, params: Any, decay: jax.Array) -> Any:
    """decay * ema + (1 - decay) * params, so written that equal ones stay equal; ema is float32."""
    gain = 1 - decay
    return jax.tree.map(lambda a, p: a + gain * (p - a), ema, params)


def item(decay: float) -> str:
    """The name of a further average of constant decay."""
    return f"decay_{decay:g}"


def extra_decays(config: Any) -> dict[str, Decay]:
    """Name -> decay of the averages besides "ema": `more_decays` and `sigma_rel` of `config.ema`.

    Raises:
        UserError: a decay or a width out of range, or twice the same.
    """
    decays: dict[str, Decay] = {}
    for value in config.more_decays:
        if not 0 <= value < 1:
            raise UserError("ema.more_decays", value, "must be in [0, 1)")
        decays[item(value)] = warmed(value)
    for std in config.sigma_rel:
        power_ema.check(std)
        decays[power_ema.item(std)] = functools.partial(power_ema.decay, std)
    if len(decays) < len(config.more_decays) + len(config.sigma_rel):
        raise UserError("ema", message="more_decays and sigma_rel must all differ in the digits that they are named by")
    return decays
