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
class Regression:
    """The loss of the module docstring.

    Attributes:
        time_distribution: how training times are drawn: "uniform", "logit_normal", "mode" or "cosmap" (Esser et al.
            2024, Sec. 3.1), "log_normal" (of sigma / alpha; Karras et al. 2022, Table 1) or "steps" (DDPM's integer
            steps, all alike).
        logit_mean: mean of logit(t) for "logit_normal"; above 0 means noisier.
        logit_std: standard deviation of logit(t), above 0.
        mode_scale: -1 to 1.75; weight of the middle times for "mode".
        shift: times in [0, 1] are moved by `processes.times.shift_time`.
        P_mean: mean of ln(sigma / alpha) for "log_normal" (EDM -1.2, EDM2 -0.4).
        P_std: its standard deviation (EDM 1.2, EDM2 1.0).
        loss_weighting: a time distribution of flows, whose density over that of the times drawn weighs the losses:
            their expectation is then that of `loss_weighting`, whatever the times; None = no weights. The shift stays
            with the times drawn.
        loss_space: the quantity whose error is squared: "x0", "eps", "v" or "velocity"; None = what is predicted.
        smallest_divisor: on the way to `loss_space`: sigma where the data is predicted, alpha where the noise is.
        condition_dropout: see `dropping.drop`.

    Raises:
        UserError: a field out of its range.
    """

    time_distribution: str = "uniform"
    logit_mean: float = 0.0
    logit_std: float = 1.0
    mode_scale: float = 1.29
    shift: float = 1.0
    P_mean: float = -1.2
    P_std: float = 1.2
    loss_weighting: str | None = None
    loss_space: str | None = None
    smallest_divisor: float = 0.05
    condition_dropout: dropping.Dropout = 0.1

    couples_examples = False
    higher_derivatives = False
    guidance = "outside"

    def __post_init__(self) -> None:
        check_choice("objective.time_distribution", self.time_distribution, times.NAMES)
        check_choice("objective.loss_weighting", self.loss_weighting or "uniform", times.OF_FLOWS)
        check_choice("objective.loss_space", self.loss_space or "x0", SPACES)
        for name, unused in {"loss_weighting": None, "shift": 1.0}.items():
            if self.time_distribution not in times.OF_FLOWS and getattr(self, name) != unused:
                what = f"needs a time_distribution among {', '.join(times.OF_FLOWS)}; leave it at {unused}"
                raise UserError(f"objective.{name}", getattr(self, name), what)
        check_positive("objective", self, "logit_std", "shift", "P_std", "smallest_divisor")
        dropping.check(self.condition_dropout)
        self._flow_times("mode")

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

    def sample_times(self, key: jax.Array, process: Process, batch: int) -> tuple[jax.Array, jax.Array]:
        """(batch,) training times and the weights of their losses.

        Raises:
            UserError: the distribution is that of integer steps, and the process has none.
        """
        if self.time_distribution == "log_normal":
            return times.log_normal(key, process, batch, self.P_mean, self.P_std)
        if self.time_distribution == "steps":
            return times.of_steps(key, process, batch)
        drawn_from = times.Shifted(self._flow_times(self.time_distribution), self.shift)
        t = drawn_from.sample(key, batch)
        if self.loss_weighting is None:
            return t, jnp.ones_like(t)
        return t, self._flow_times(self.loss_weighting).density(t) / drawn_from.density(t)

    def _flow_times(self, name: str) -> times.Uniform | times.LogitNormal | times.Mode | times.CosMap:
        if name == "logit_normal":
            return times.LogitNormal(self.logit_mean, self.logit_std)
        if name == "mode":
            return times.Mode(self.mode_scale)
        return times.CosMap() if name == "cosmap" else times.Uniform()


def mean_square(error: jax.Array) -> jax.Array:
    """(B,) means of the squares of (B, ...)."""
    return jnp.mean(jnp.square(error), axis=tuple(range(1, error.ndim)))


build = Regression
