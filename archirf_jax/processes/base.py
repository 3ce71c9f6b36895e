"""What every process shares: the result of a prediction, and the one place where conditioning is dropped.

A process is a frozen dataclass with

    loss(key, model_fn, x0, y, null)  -> per-example losses (B,), aux
    predict(model_fn, x, t, y)        -> Prediction
    prior(key, shape)                 -> x at t = 1, one image

over times t = 0 (data) to t = 1 (noise) and x_t = alpha(t) x0 + sigma(t) eps. It never sees a network, only a
`ModelFn` told the process's own network time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

# x (B, H, W, C), network time (B,), y (a pytree with a leading batch axis) -> (B, H, W, C or 2C).
ModelFn = Callable[[jax.Array, jax.Array, Any], jax.Array]


class Prediction(NamedTuple):
    """What a network says about x_t, in every parametrisation; each (B, H, W, C)."""

    x0: jax.Array
    eps: jax.Array
    v: jax.Array


class Process(Protocol):
    """The contract of the module docstring."""

    def loss(
        self, key: jax.Array, model_fn: ModelFn, x0: jax.Array, y: Any, null: Any
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Losses (B,) for clean images x0 and conditions y; `null` is y's unconditional twin."""

    def predict(self, model_fn: ModelFn, x: jax.Array, t: jax.Array, y: Any) -> Prediction:
        """What the network says about x at times t (B,)."""

    def prior(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """One image of `shape` at t = 1."""


def drop_condition(key: jax.Array, y: Any, null: Any, probability: float) -> Any:
    """y with each example replaced by its null twin with the given probability (Ho & Salimans 2022, Algorithm 1).

    Args:
        key: one coin is thrown per example, the same for all leaves of y.
        y: a pytree whose leaves have a leading batch axis.
        null: the same tree for "no condition".
        probability: 0 to 1.
    """
    if probability == 0:
        return y
    batch = jax.tree.leaves(y)[0].shape[0]
    dropped = jax.random.bernoulli(key, float(probability), (batch,))
    return jax.tree.map(lambda a, b: jnp.where(expand(dropped, a), b, a), y, null)


def expand(values: jax.Array, like: jax.Array) -> jax.Array:
    """(B,) values with trailing axes of size 1, to broadcast against `like` (B, ...)."""
    return values.reshape(values.shape + (1,) * (like.ndim - values.ndim))
