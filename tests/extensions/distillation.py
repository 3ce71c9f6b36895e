"""A student learns the data that a frozen teacher predicts at the same noise."""

from __future__ import annotations

import dataclasses

import jax

from archirf_jax.contracts import Metrics, Models, Setting
from archirf_jax.objectives import metrics
from archirf_jax.objectives.regression import Draw, Regression, mean_square
from archirf_jax.processes.base import ask


@dataclasses.dataclass(frozen=True)
class Distillation(Regression):
    """Times, noise and dropped conditions as of `Regression`."""

    def losses(self, models: Models, setting: Setting, drawn: Draw) -> tuple[jax.Array, Metrics, dict[str, jax.Array]]:
        process, teacher = setting.process, models.teacher
        assert teacher is not None, "config.frozen.teacher names the teacher's run"
        x = process.noised(drawn.x0, drawn.eps, drawn.t)
        output, extras = ask(process, models.online, x, drawn.t, drawn.condition)
        wanted, _ = teacher(x, drawn.t, drawn.condition, teacher.init(x))
        losses = mean_square(process.interpret(output, x, drawn.t).x0 - wanted.x0)
        return drawn.weight * losses, metrics.by_time(losses, drawn.t) | metrics.diagnostics(extras), {}


build = Distillation
