"""Mean flows (Geng et al. 2025, "Mean Flows for One-step Generative Modeling"): the average velocity between two times.

u(x_t, s, t) = v - (t - s) du/dt,   du/dt along the path by a Jacobian-vector product       Eq. 6 and 8
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from archirf_jax.contracts import Condition, Metrics, Models, Setting
from archirf_jax.objectives import metrics
from archirf_jax.objectives.regression import mean_square
from archirf_jax.processes.base import ask, expand


class Draw(NamedTuple):
    """Data and noise (B, ...), times t >= s (B,) and conditions."""

    x0: jax.Array
    eps: jax.Array
    t: jax.Array
    s: jax.Array
    condition: Condition


@dataclasses.dataclass(frozen=True)
class MeanFlow:
    """Attributes:
    equal_share: of examples, whose two times are the same.
    """

    equal_share: float = 0.75

    couples_examples = False
    higher_derivatives = True
    guidance = "inside"  # there is no network without condition to guide by

    def wrap(self, module: Any) -> Any:
        return module

    def init(self) -> Any:
        return ()

    def draw(self, key: jax.Array, setting: Setting, x0: jax.Array, condition: Condition) -> Draw:
        key_times, key_equal, key_eps = jax.random.split(key, 3)
        both = jax.nn.sigmoid(jax.random.normal(key_times, (2, len(x0))) - 0.4)
        t, s = jnp.max(both, axis=0), jnp.min(both, axis=0)
        s = jnp.where(jax.random.bernoulli(key_equal, self.equal_share, s.shape), t, s)
        return Draw(x0, jax.random.normal(key_eps, x0.shape), t, s, condition)

    def losses(self, models: Models, setting: Setting, drawn: Draw) -> tuple[jax.Array, Metrics, dict[str, jax.Array]]:
        process = setting.process
        x, v = process.noised(drawn.x0, drawn.eps, drawn.t), process.target(drawn.x0, drawn.eps, drawn.t)

        def average_velocity(x: jax.Array, t: jax.Array) -> tuple[jax.Array, Any]:
            return ask(process, models.online, x, t, drawn.condition, s=drawn.s)

        ones = jnp.ones_like(drawn.t)
        u, rate, extras = jax.jvp(average_velocity, (x, drawn.t), (v, ones), has_aux=True)
        target = jax.lax.stop_gradient(v - expand(drawn.t - drawn.s, x) * rate)
        square = mean_square(u - target)
        losses = square / jax.lax.stop_gradient(square + 1e-3)  # adaptive weight, Sec. 4.3
        return losses, metrics.by_time(square, drawn.t) | metrics.diagnostics(extras), {}

    def remember(self, objective_state: Any, noted: dict[str, jax.Array]) -> Any:
        return objective_state


build = MeanFlow
