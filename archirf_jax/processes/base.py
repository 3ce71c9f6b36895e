"""What every process shares: x_t = alpha(t) x0 + sigma(t) eps from t = 0 (data) to t = 1 (noise), and one loss.

A process says how alpha and sigma run, which time and input the network is given, what it should answer (`target`) and
what its answer means (`interpret`). Everything else follows. It never sees a network, only a `ModelFn`.

Two numbers place any process beside any other:

    ratio(t) = sigma / alpha             the noise level that EDM calls sigma; 0 at the data
    flow_time(t) = sigma / (alpha + sigma)

x / (alpha + sigma) runs on a straight line from x0 to eps as flow_time goes from 0 to 1, whatever the process:
each is a rectified flow seen through a scale and a clock, and solvers may step in those coordinates.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from archirf_jax.contracts import Condition, Extras, ModelFn, Prediction
from archirf_jax.errors import UserError, nearest

# Times and what is computed from them: on the device inside jit, in float64 on the host for grids and tables.
Times = TypeVar("Times", jax.Array, np.ndarray)


class Draw(NamedTuple):
    """What the losses of a batch are computed from; every leaf has the leading axis B.

    Attributes:
        x0: images (B, H, W, C). eps: noise, likewise.
        t: times (B,). weight: of their losses (B,).
        y: conditions, some of them dropped.
    """

    x0: jax.Array
    eps: jax.Array
    t: jax.Array
    weight: jax.Array
    y: Any


@dataclasses.dataclass(frozen=True)
class Process:
    """The contract of the module docstring.

    Attributes:
        condition_dropout: share of examples trained without condition, 0 to 1.
    """

    condition_dropout: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.condition_dropout <= 1:
            raise UserError(f"config.process.condition_dropout: {self.condition_dropout} must lie in [0, 1]")

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
        """What the network is told at times t; rises with t."""
        raise NotImplementedError

    def time(self, network_time: Times) -> Times:
        """The inverse of `network_time`."""
        raise NotImplementedError

    def network_input(self, x: jax.Array, t: jax.Array) -> jax.Array:
        """What the network is given for x (B, H, W, C) at times t (B,)."""
        del t
        return x

    def target(self, x0: jax.Array, eps: jax.Array, t: jax.Array) -> jax.Array:
        """What the network should answer where image and noise are known; (B, H, W, C)."""
        raise NotImplementedError

    def interpret(self, output: jax.Array, x: jax.Array, t: jax.Array) -> Prediction:
        """What the network's answer (B, H, W, C') to x (B, H, W, C) at times t (B,) means."""
        raise NotImplementedError

    def sample_times(self, key: jax.Array, batch: int, memory: Any = ()) -> tuple[jax.Array, jax.Array]:
        """(batch,) training times and the weights of their losses."""
        raise NotImplementedError

    def init_memory(self) -> Any:
        """What the process remembers of earlier losses before the first step: a pytree, () for nothing."""
        return ()

    def remember(self, memory: Any, aux: dict[str, jax.Array]) -> Any:
        """The memory after a step whose loss gave `aux`."""
        del aux
        return memory

    def step_variance(self, prediction: Prediction, small: jax.Array, large: jax.Array) -> jax.Array:
        """The variance of an ancestral step between that of the posterior and that of the forward step."""
        del prediction, large
        return small

    def check_start(self, t: float) -> None:
        """Raise a UserError if a prediction at time t, where sampling would start, means nothing."""
        del t

    def error(
        self, output: jax.Array, x0: jax.Array, eps: jax.Array, x: jax.Array, t: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The loss (B,) of the network's answer, and what else is worth knowing (each (B,))."""
        del x
        return jnp.mean(jnp.square(output - self.target(x0, eps, t)), axis=(1, 2, 3)), {}

    def ratio(self, t: Times) -> Times:
        """sigma / alpha at times t."""
        return self.sigma(t) / self.alpha(t)

    def flow_time(self, t: Times) -> Times:
        """sigma / (alpha + sigma) at times t, in [0, 1]."""
        return self.sigma(t) / (self.alpha(t) + self.sigma(t))

    def noised(self, x0: jax.Array, eps: jax.Array, t: jax.Array) -> jax.Array:
        """x_t (B, H, W, C) for times t, () or (B,)."""
        return expand(self.alpha(t), x0) * x0 + expand(self.sigma(t), x0) * eps

    def draw(self, key: jax.Array, x0: jax.Array, y: Any, null: Any, memory: Any = ()) -> Draw:
        """Everything random about a batch's losses, the same however the batch is divided afterwards.

        Args:
            key: for times, noise and dropped conditions.
            x0: (B, H, W, C) images in [-1, 1].
            y: conditions, a pytree with leading axis B.
            null: the unconditional twin of y.
            memory: see `init_memory`.
        """
        key_t, key_eps, key_drop = jax.random.split(key, 3)
        t, weight = self.sample_times(key_t, x0.shape[0], memory)
        eps = jax.random.normal(key_eps, x0.shape)
        return Draw(x0, eps, t, weight, drop_condition(key_drop, y, null, self.condition_dropout))

    def losses(self, model_fn: ModelFn, drawn: Draw) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Weighted losses (B,) of what was drawn.

        Returns:
            losses (B,), and {"t": the times drawn, "raw": losses without the weights of the times, ...}, each (B,).
        """
        x0, eps, t, weight, y = drawn
        x = self.noised(x0, eps, t)
        losses, aux = self.error(self._ask(model_fn, x, t, y), x0, eps, x, t)
        return weight * losses, aux | {"t": t, "raw": losses}

    def loss(
        self, key: jax.Array, model_fn: ModelFn, x0: jax.Array, y: Any, null: Any, memory: Any = ()
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """`losses` of what `draw` draws."""
        return self.losses(model_fn, self.draw(key, x0, y, null, memory))

    def predict(self, model_fn: ModelFn, x: jax.Array, t: jax.Array, y: Any) -> Prediction:
        """What the network says about x (B, H, W, C) at times t (B,)."""
        return self.interpret(self._ask(model_fn, x, t, y), x, t)

    def prior(self, key: jax.Array, shape: tuple[int, ...], t: jax.Array | float = 1.0) -> jax.Array:
        """Noise of `shape` from which sampling starts at time t: normal, as large as sigma(t)."""
        return self.sigma(jnp.asarray(t)) * jax.random.normal(key, shape)

    def uncertainty_head(self) -> dict[str, Any]:
        """Fields of the head that says the expected loss as a last channel of the answer; {} = there is none."""
        return {}

    def output_channels(self, channels: int) -> int:
        """How many channels the network answers for images of `channels`."""
        return channels

    def _ask(self, model_fn: ModelFn, x: jax.Array, t: jax.Array, y: Any) -> jax.Array:
        output = model_fn(self.network_input(x, t), self.network_time(t), y)
        needed = self.output_channels(x.shape[-1])
        if output.shape != (*x.shape[:-1], needed):
            # One image channel would broadcast against two of the network in silence.
            learned = self.output_channels(2) == 4
            raise UserError(
                f"config.model.learn_sigma: the network gives {output.shape[-1]} channels for images of {x.shape[-1]}, "
                f"but this process needs {needed}; set it to {learned}: "
                f"{'' if learned else 'only '}ddpm's variance='learned_range' needs twice the channels"
            )
        return output


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
        # One channel would broadcast against two of the network in silence.
        raise UserError(
            "model.learn_sigma",
            message=f"the network gives {output.shape[-1]} channels for {x.shape[-1]}, but this process needs {needed}; "
            f"{'set it to True' if needed > x.shape[-1] else 'set it to False'}: a learned variance takes twice as many",
        )
    return output, extras


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
    """(B,) values with trailing axes of size 1, to broadcast against `like` (B, ...); scalars stay scalars."""
    return values.reshape(values.shape + (1,) * (like.ndim - 1)) if values.ndim else values


def backend(values: Any) -> ModuleType:
    """jax.numpy for device arrays and tracers, numpy for everything else."""
    return jnp if isinstance(values, jax.Array) else np


def check_choice(field: str, value: str, allowed: Mapping[str, Any] | tuple[str, ...]) -> None:
    """Raise a UserError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise UserError(
            f"config.process.{field}: {value!r} is not one of {', '.join(allowed)}{nearest(str(value), allowed)}"
        )


def check_positive(process: Process, *fields: str) -> None:
    """Raise a UserError unless these fields are finite and above 0."""
    for name in fields:
        if not 0 < getattr(process, name) < math.inf:
            raise UserError(f"config.process.{name}: {getattr(process, name)} must be a finite number above 0")
