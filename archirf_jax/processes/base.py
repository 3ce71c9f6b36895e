"""What every process shares: x_t = alpha(t) x0 + sigma(t) eps from t = 0 (data) to t = 1 (noise).

A process says how alpha and sigma run, which time and input the network is given, what it should answer (`target`) and
what its answer means (`interpret`). It holds mathematics alone: losses are objectives, and it never sees a network.

Two numbers relate any process to any other:

    ratio(t) = sigma / alpha                 the noise level that EDM calls sigma; 0 at the data
    flow_time(t) = sigma / (alpha + sigma)   from 0 to 1

x / (alpha + sigma) moves on a line from x0 to eps as the flow time goes from 0 to 1: every process is a rectified flow
seen through a scale and a clock, and solvers may step in those coordinates.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from types import ModuleType
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from archirf_jax.contracts import Condition, Extras, ModelFn, Prediction
from archirf_jax.errors import UserError, nearest
from archirf_jax.processes.conversions import Path

# Times and what is computed from them: on the device inside jit, in float64 on the host for grids and tables.
Times = TypeVar("Times", jax.Array, np.ndarray)


@dataclasses.dataclass(frozen=True)
class Process:
    """The contract of the module docstring; x is (B, ...) of any rank, t is () or (B,)."""

    def alpha(self, t: Times) -> Times:
        """The share of the data at times t."""
        raise NotImplementedError

    def sigma(self, t: Times) -> Times:
        """The share of the noise at times t."""
        raise NotImplementedError

    def time_of_ratio(self, ratio: Times) -> Times:
        """The times at which sigma / alpha has these values: the inverse of `ratio`."""
        raise NotImplementedError

    def network_time(self, t: Times) -> Times:
        """The time that the network is given at times t; it rises or falls with t."""
        raise NotImplementedError

    def network_input(self, x: jax.Array, t: jax.Array) -> jax.Array:
        """What the network is given for x at times t (B,)."""
        del t
        return x

    def target(self, x0: jax.Array, eps: jax.Array, t: jax.Array) -> jax.Array:
        """What the network should answer where data and noise are known; like x0."""
        raise NotImplementedError

    def interpret(self, output: jax.Array, x: jax.Array, t: jax.Array) -> Prediction:
        """What the network's answer to x at times t (B,) means; affine in the answer."""
        raise NotImplementedError

    def step_variance(self, prediction: Prediction, small: jax.Array, large: jax.Array) -> jax.Array:
        """The variance of an ancestral step between that of the posterior and that of the forward step."""
        del prediction, large
        return small

    def check_start(self, t: float) -> None:
        """Raise a UserError if a prediction at time t, where sampling would start, has no meaning."""
        del t

    def output_channels(self, channels: int) -> int:
        """How many channels the network answers for data of `channels`."""
        return channels

    def ratio(self, t: Times) -> Times:
        """sigma / alpha at times t; infinite where no data is left."""
        with np.errstate(divide="ignore"):
            return self.sigma(t) / self.alpha(t)

    def flow_time(self, t: Times) -> Times:
        """sigma / (alpha + sigma) at times t, in [0, 1]."""
        return self.sigma(t) / (self.alpha(t) + self.sigma(t))

    def noised(self, x0: jax.Array, eps: jax.Array, t: jax.Array) -> jax.Array:
        """x_t for times t, () or (B,)."""
        return expand(self.alpha(t), x0) * x0 + expand(self.sigma(t), x0) * eps

    def prior(self, key: jax.Array, shape: tuple[int, ...], t: jax.Array | float = 1.0) -> jax.Array:
        """Noise of `shape` from which sampling starts at time t: normal, as large as sigma(t)."""
        return self.sigma(jnp.asarray(t)) * jax.random.normal(key, shape)

    def coefficients(self, t: jax.Array, like: jax.Array) -> Path:
        """alpha, sigma and their derivatives at times t, to broadcast against `like`."""
        ones = jnp.ones_like(t)
        alpha, alpha_rate = jax.jvp(self.alpha, (t,), (ones,))
        sigma, sigma_rate = jax.jvp(self.sigma, (t,), (ones,))
        return Path(*(expand(value, like) for value in (alpha, sigma, alpha_rate, sigma_rate)))


def ask(
    process: Process, model_fn: ModelFn, x: jax.Array, t: jax.Array, condition: Condition, *, s: jax.Array | None = None
) -> tuple[jax.Array, Extras]:
    """The network's answer to x (B, ...) at process times t (B,), on the way to s (B,), and what it sows.

    Raises:
        UserError: the network gives another number of channels than the process takes.
    """
    to = {} if s is None else {"s": process.network_time(s)}
    output, extras = model_fn(process.network_input(x, t), process.network_time(t), condition, **to)
    needed = process.output_channels(x.shape[-1])
    if output.shape != (*x.shape[:-1], needed):
        # Without this check one channel would silently broadcast against two of the network.
        what = f"gives {output.shape[-1]} channels, and the process needs {needed} for {x.shape[-1]}"
        how = "a learned variance takes twice the channels; choose another process.variance, or learn_sigma"
        raise UserError("model", message=f"{what}; {how} of a network that has this field")
    return output, extras


def expand(values: jax.Array, like: jax.Array) -> jax.Array:
    """(B,) values with trailing axes of size 1, to broadcast against `like` (B, ...); scalars stay scalars."""
    return values.reshape(values.shape + (1,) * (like.ndim - 1)) if values.ndim else values


def backend(values: Any) -> ModuleType:
    """jax.numpy for device arrays and tracers, numpy for everything else."""
    return jnp if isinstance(values, jax.Array) else np


def check_choice(field: str, value: str, allowed: Mapping[str, Any] | tuple[str, ...]) -> None:
    """Raise a UserError unless the value of a field, such as "process.path", is one of `allowed`."""
    if value not in allowed:
        raise UserError(field, value, f"is not one of {', '.join(allowed)}{nearest(str(value), allowed)}")


def check_positive(group: str, thing: Any, *fields: str) -> None:
    """Raise a UserError unless these fields of a group of the configuration are finite and above 0."""
    for name in fields:
        if not 0 < getattr(thing, name) < math.inf:
            raise UserError(f"{group}.{name}", getattr(thing, name), "must be a finite number above 0")
