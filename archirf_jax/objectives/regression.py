"""The mean square error of what a network predicts: rectified flow's loss, DDPM's simple loss, EDM's.

    L = w(t) mean over the data's numbers of |prediction - target|^2

A network may predict one quantity and be trained on another: conversions are affine, so with `loss_space` the error of
what is predicted is multiplied by their slope, whose divisor is kept away from 0. Data predicted with the velocity in
the loss is JiT's (Li & He 2025, "Back to Basics", Sec. 4).
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from archirf_jax.contracts import Condition, Metrics, Models, Setting
from archirf_jax.errors import UserError
from archirf_jax.objectives import dropping, metrics, times
from archirf_jax.processes.base import Process, ask, check_choice, check_positive
from archirf_jax.processes.conversions import TABLE, slope

SPACES = ("x0", "eps", "v", "velocity")


class Draw(NamedTuple):
    """What the losses of a batch are computed from.

    Attributes:
        x0: data (B, ...). eps: noise, likewise.
        t: times (B,). weight: of their losses (B,).
        condition: some of it dropped.
    """

    x0: jax.Array
    eps: jax.Array
    t: jax.Array
    weight: jax.Array
    condition: Condition


@dataclasses.dataclass(frozen=True)
class Regression(times.TrainingTimes):
    """The loss of the module docstring; fields on times as of `times.TrainingTimes`.

    Attributes:
        loss_space: the quantity whose error is squared: "x0", "eps", "v" or "velocity"; None = what is predicted.
        smallest_divisor: on the way to `loss_space`: sigma where the data is predicted, alpha where the noise is.
        condition_dropout: see `dropping.drop`.

    Raises:
        UserError: a field out of its range.
    """

    loss_space: str | None = None
    smallest_divisor: float = 0.05
    condition_dropout: dropping.Dropout = 0.1

    couples_examples = False
    higher_derivatives = False
    guidance = "outside"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("objective.loss_space", self.loss_space or "x0", SPACES)
        check_positive("objective", self, "smallest_divisor")
        dropping.check(self.condition_dropout)

    def wrap(self, module: Any) -> Any:
        """The module as it is."""
        return module

    def init(self) -> Any:
        """No state."""
        return ()

    def draw(self, key: jax.Array, setting: Setting, x0: jax.Array, condition: Condition) -> Draw:
        """Times, noise and dropped conditions for data x0 (B, ...)."""
        key_t, key_eps, key_drop = jax.random.split(key, 3)
        t, weight = self.sample_times(key_t, setting.process, len(x0))
        eps = jax.random.normal(key_eps, x0.shape)
        return Draw(x0, eps, t, weight, dropping.drop(key_drop, condition, setting.null, self.condition_dropout))

    def losses(self, models: Models, setting: Setting, drawn: Draw) -> tuple[jax.Array, Metrics, dict[str, jax.Array]]:
        """Weighted losses (B,), those of the quarters of time without the weights, and the network's diagnostics."""
        process = setting.process
        x = process.noised(drawn.x0, drawn.eps, drawn.t)
        output, extras = ask(process, models.online, x, drawn.t, drawn.condition)
        losses = mean_square(self.error(process, output, drawn))
        return drawn.weight * losses, metrics.by_time(losses, drawn.t) | metrics.diagnostics(extras), {}

    def remember(self, objective_state: Any, noted: dict[str, jax.Array]) -> Any:
        """No state."""
        del noted
        return objective_state

    def error(self, process: Process, output: jax.Array, drawn: Draw) -> jax.Array:
        """The network's answer (B, ...) less what it should be, up to sign in another space of the loss.

        Raises:
            UserError: the network also learns a variance.
        """
        target = process.target(drawn.x0, drawn.eps, drawn.t)
        if output.shape != target.shape:
            what = "this one does not train a learned variance; take ddpm_hybrid, or a process.variance that is fixed"
            raise UserError("objective.name", message=what)
        if self.loss_space is None:
            return output - target
        predicted = getattr(process, "prediction", None)
        if predicted not in TABLE:
            x, predicted = process.noised(drawn.x0, drawn.eps, drawn.t), "x0"
            output, target = (process.interpret(value, x, drawn.t).x0 for value in (output, target))
        path = process.coefficients(drawn.t, drawn.x0)
        return slope(predicted, self.loss_space, path, self.smallest_divisor) * (output - target)


def mean_square(error: jax.Array) -> jax.Array:
    """(B,) means of the squares of (B, ...)."""
    return jnp.mean(jnp.square(error), axis=tuple(range(1, error.ndim)))


build = Regression
