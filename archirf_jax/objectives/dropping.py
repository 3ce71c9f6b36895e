"""Conditions are dropped in training so that a network also learns to answer without (Ho & Salimans 2022, Alg. 1)."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from archirf_jax.contracts import Condition
from archirf_jax.errors import UserError, nearest
from archirf_jax.processes.base import expand

FIELD = "objective.condition_dropout"
Dropout = float | Mapping[str, float]


def check(dropout: Dropout) -> None:
    """Raise a UserError unless all probabilities lie in [0, 1]."""
    for probability in dropout.values() if isinstance(dropout, Mapping) else [dropout]:
        if not 0 <= probability <= 1:
            raise UserError(FIELD, probability, "must lie in [0, 1]")


def drop(key: jax.Array, condition: Condition, null: Condition, dropout: Dropout) -> Condition:
    """The condition with some examples' keys replaced by what stands for none.

    Args:
        key: one coin is thrown an example and group.
        condition: leaves (B, ...).
        null: without batch axis, of the keys that may be dropped; others stay.
        dropout: a probability with which all keys of `null` are dropped together, or groups of keys that are dropped
            together, each with its own, such as {"tokens,pooled": 0.1, "label": 0.1}.

    Raises:
        UserError: a group names a key that cannot be dropped.
    """
    if not isinstance(dropout, Mapping):
        return _drop(key, condition, null, dropout)
    for i, (group, probability) in enumerate(dropout.items()):
        keys = [name.strip() for name in group.split(",")]
        for name in keys:
            if name not in null:
                allowed = ", ".join(null) or "none"
                raise UserError(FIELD, name, f"cannot be dropped; what can: {allowed}{nearest(name, null)}")
        chosen = {name: null[name] for name in keys}
        condition = _drop(jax.random.fold_in(key, i), condition, chosen, probability)
    return condition


def drops(dropout: Dropout) -> bool:
    """Whether any condition is ever dropped."""
    return any(dropout.values()) if isinstance(dropout, Mapping) else dropout > 0


def _drop(key: jax.Array, condition: Condition, null: Condition, probability: float) -> Condition:
    if probability == 0 or not null:
        return condition
    batch = len(condition[next(iter(null))])
    dropped = jax.random.bernoulli(key, float(probability), (batch,))

    def replaced(value: jax.Array, instead: jax.Array) -> jax.Array:
        return jnp.where(expand(dropped, value), jnp.asarray(instead, value.dtype), value)

    return condition | {name: replaced(condition[name], instead) for name, instead in null.items()}
