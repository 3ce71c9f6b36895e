"""The mean square error weighed by the network's own uncertainty (Karras et al. 2024, EDM2, Sec. 2.2, Eq. 15).

L = |error|^2 / exp(u(t)) + u(t)          u: the logarithm of the loss that the network expects at time t
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from archirf_jax.contracts import Metrics, Models, Setting
from archirf_jax.models.uncertainty import Uncertain
from archirf_jax.objectives import metrics
from archirf_jax.objectives.regression import Draw, Regression, mean_square
from archirf_jax.processes.base import ask, check_positive


@dataclasses.dataclass(frozen=True)
class Uncertainty(Regression):
    """The loss of the module docstring; other fields as of `Regression`.

    Attributes:
        channels: random features of the time that u is a linear function of.
        time_scale: what network times are divided by, so that u is smooth over differences of about 1.

    Raises:
        UserError: a field out of its range.
    """

    channels: int = 128
    time_scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("objective", self, "channels", "time_scale")

    def wrap(self, module: Any) -> Any:
        """The module with a head for u."""
        return Uncertain(module, self.time_scale, self.channels)

    def losses(self, models: Models, setting: Setting, drawn: Draw) -> tuple[jax.Array, Metrics, dict[str, jax.Array]]:
        """Losses (B,); those of the quarters of time are the plain square errors."""
        process = setting.process
        x = process.noised(drawn.x0, drawn.eps, drawn.t)
        output, extras = ask(process, models.online, x, drawn.t, drawn.condition)
        plain, u = mean_square(self.error(process, output, drawn)), extras["log_variance"]
        losses = drawn.weight * (plain / jnp.exp(u) + u)
        reported = metrics.by_time(plain, drawn.t) | {"uncertainty": metrics.mean(u)} | metrics.diagnostics(extras)
        return losses, reported, {}


build = Uncertainty
