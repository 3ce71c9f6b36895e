"""DDPM's simple loss and, where the variance is learned, the variational bound that alone trains it.

L = w(k) mean |prediction - target|^2 + bound_weight n L_vb        Nichol & Dhariwal 2021, "Improved DDPM", Eq. 16
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from archirf_jax.contracts import Condition, Metrics, Models, Setting
from archirf_jax.errors import UserError
from archirf_jax.objectives import dropping, importance, metrics, times
from archirf_jax.objectives.regression import Draw, mean_square
from archirf_jax.processes.base import ask, check_choice, check_positive
from archirf_jax.processes.ddpm import DDPM
from archirf_jax.processes.variational_bound import LIKELIHOODS, bound

TIME_SAMPLING = ("uniform", "loss_second_moment")
WEIGHTINGS = ("min_snr",)


@dataclasses.dataclass(frozen=True)
class DdpmHybrid:
    """The loss of the module docstring.

    Attributes:
        time_sampling: of the visited steps: "uniform", or "loss_second_moment" for importance sampling (Sec. 3.3).
        weighting: "min_snr" (Hang et al. 2023, Eq. 8), or None for 1.
        min_snr_gamma: largest signal-to-noise ratio that counts, for "min_snr".
        bound_weight: of n times the bound, 0 or more, for a learned variance.
        likelihood: of an 8-bit image in the bound: "exact", or "adm", the published approximation.
        condition_dropout: see `dropping.drop`.
        process: with integer steps, of which importance sampling keeps losses.

    Raises:
        UserError: a field out of its range, or another process.
    """

    time_sampling: str = "uniform"
    weighting: str | None = None
    min_snr_gamma: float = 5.0
    bound_weight: float = 0.001
    likelihood: str = "exact"
    condition_dropout: dropping.Dropout = 0.1
    process: Any = None

    couples_examples = False
    higher_derivatives = False
    guidance = "outside"

    def __post_init__(self) -> None:
        if not isinstance(self.process, DDPM):
            raise UserError("objective.name", "ddpm_hybrid", "needs process.name='ddpm'; take regression")
        check_choice("objective.time_sampling", self.time_sampling, TIME_SAMPLING)
        check_choice("objective.weighting", self.weighting or "min_snr", WEIGHTINGS)
        check_choice("objective.likelihood", self.likelihood, LIKELIHOODS)
        check_positive("objective", self, "min_snr_gamma")
        if not 0 <= self.bound_weight < math.inf:
            raise UserError("objective.bound_weight", self.bound_weight, "must be a finite number, 0 or more")
        dropping.check(self.condition_dropout)

    def wrap(self, module: Any) -> Any:
        """The module as it is."""
        return module

    def init(self) -> Any:
        """The latest losses of each visited step, where times are drawn by them."""
        return importance.init(len(self.process.visited)) if self.time_sampling == "loss_second_moment" else ()

    def draw(self, key: jax.Array, setting: Setting, x0: jax.Array, condition: Condition) -> Draw:
        """Times, noise and dropped conditions for data x0 (B, ...)."""
        key_t, key_eps, key_drop = jax.random.split(key, 3)
        p = importance.probabilities(setting.objective_state) if setting.objective_state else None
        t, weight = times.of_steps(key_t, setting.process, len(x0), p)
        eps = jax.random.normal(key_eps, x0.shape)
        return Draw(x0, eps, t, weight, dropping.drop(key_drop, condition, setting.null, self.condition_dropout))

    def losses(self, models: Models, setting: Setting, drawn: Draw) -> tuple[jax.Array, Metrics, dict[str, jax.Array]]:
        """Weighted losses (B,); those of the quarters of time have no weights."""
        process: DDPM = setting.process
        x = process.noised(drawn.x0, drawn.eps, drawn.t)
        output, extras = ask(process, models.online, x, drawn.t, drawn.condition)
        simple, *learned = jnp.split(output, process.output_channels(1), axis=-1)
        plain = mean_square(simple - process.target(drawn.x0, drawn.eps, drawn.t))
        losses, reported = self._weight(process, drawn.t) * plain, metrics.diagnostics(extras)
        if learned:
            held = jnp.concatenate([jax.lax.stop_gradient(simple), *learned], axis=-1)
            prediction, index = process.interpret(held, x, drawn.t), process.index(drawn.t)
            of_bound = bound(process, prediction, drawn.x0, x, index, self.likelihood)
            added = self.bound_weight * len(process.visited) * of_bound
            losses, plain = losses + added, plain + added
            reported["bound"] = metrics.mean(of_bound)
        noted = {"index": process.index(drawn.t), "losses": losses} if self.init() else {}
        return drawn.weight * losses, metrics.by_time(plain, drawn.t) | reported, noted

    def remember(self, objective_state: Any, noted: dict[str, jax.Array]) -> Any:
        """The latest losses with those of this step."""
        return importance.record(objective_state, noted["index"], noted["losses"]) if noted else objective_state

    def _weight(self, process: DDPM, t: jax.Array) -> jax.Array:
        """The factor of the square error of what is predicted."""
        if self.weighting is None:
            return jnp.ones_like(t)
        snr = 1 / process.ratio(t) ** 2
        cut = jnp.minimum(snr, self.min_snr_gamma)
        return {"x0": cut, "eps": cut / snr, "v": cut / (snr + 1)}[process.prediction]


build = DdpmHybrid
