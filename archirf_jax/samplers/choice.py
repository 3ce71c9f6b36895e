"""How to sample, as a configuration says it: names and numbers, checked against each other and made into parts."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from archirf_jax import registry
from archirf_jax.errors import UserError, nearest
from archirf_jax.processes.base import ModelFn, Process
from archirf_jax.samplers import denoisers, grids, guidance, solvers
from archirf_jax.samplers.denoisers import Denoiser, LogProbability
from archirf_jax.samplers.guidance import Interval
from archirf_jax.samplers.sample import Solver

GUIDANCE = ("classifier_free", "adaptive_projected", "autoguidance")
THRESHOLDS = ("none", "static", "dynamic")
ROUNDING = 1e-6  # relative, of times in float32
OPTIONS = {"eta": ("ddim", "euler_maruyama"), "churn": ("edm",)}  # fields of a few solvers


@dataclasses.dataclass(frozen=True)
class Choice:
    """One way to sample.

    Attributes:
        solver: a file of `samplers.solvers`.
        steps: N.
        grid: a name of `samplers.grids`.
        shift: of the grid "shifted".
        eta: noise of ddim and euler_maruyama; below 0 = the solver's own.
        churn: noise of edm; 0 = none.
        guidance: "classifier_free", "adaptive_projected" or "autoguidance" (which needs a weaker network).
        guidance_scale: 1 = off.
        guidance_interval: times from and to which guidance acts, within [0, 1].
        guidance_rescale: 0 to 1, see `guidance.classifier_free`.
        guidance_parallel, guidance_longest, guidance_momentum: of adaptive projected guidance.
        classifier_scale: of the gradient of a classifier, where one is given.
        threshold: "none", "static" (the image is cut to [-1, 1]) or "dynamic" (Imagen's).
        strength: time from which sampling starts, where it starts from an image.

    Raises:
        UserError: a value out of its range, or two that do not fit.
    """

    solver: str = "euler"
    steps: int = 50
    grid: str = "uniform"
    shift: float = 1.0
    eta: float = -1.0
    churn: float = 0.0
    guidance: str = "classifier_free"
    guidance_scale: float = 1.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    guidance_rescale: float = 0.0
    guidance_parallel: float = 0.0
    guidance_longest: float = 0.0
    guidance_momentum: float = 0.0
    classifier_scale: float = 1.0
    threshold: str = "none"
    strength: float = 1.0

    def __post_init__(self) -> None:
        for name, allowed in (("guidance", GUIDANCE), ("threshold", THRESHOLDS)):
            value = getattr(self, name)
            if value not in allowed:
                raise UserError(f"{name}: {value!r} is not one of {', '.join(allowed)}{nearest(value, allowed)}")
        for name, low, high in (
            ("guidance_scale", 0, math.inf),
            ("classifier_scale", 0, math.inf),
            ("guidance_rescale", 0, 1),
            ("guidance_longest", 0, math.inf),
            ("guidance_parallel", -math.inf, math.inf),
            ("guidance_momentum", -math.inf, math.inf),
            ("churn", 0, math.inf),
            ("eta", -math.inf, math.inf),
        ):
            if not (low <= getattr(self, name) <= high and math.isfinite(getattr(self, name))):
                raise UserError(f"{name}: {getattr(self, name)} must be a finite number from {low} to {high}")
        first, second = self.guidance_interval
        if not 0 <= first <= second <= 1:
            raise UserError(f"guidance_interval: {first:g},{second:g} must be two times with 0 <= first <= second <= 1")
        if not 0 < self.strength <= 1:
            raise UserError(f"strength: {self.strength} must be above 0 and at most 1")
        if self.guidance_rescale and self.guidance == "adaptive_projected":
            raise UserError("guidance_rescale: belongs to classifier_free and autoguidance, not to adaptive_projected")
        if self.guidance == "adaptive_projected" and self.guidance_interval != (0.0, 1.0):
            raise UserError("guidance_interval: belongs to classifier_free and autoguidance, not to adaptive_projected")
        for name in ("guidance_parallel", "guidance_longest", "guidance_momentum"):
            if getattr(self, name) and self.guidance != "adaptive_projected":
                raise UserError(f"{name}: belongs to adaptive_projected, not to {self.guidance}")

    def asks_null(self) -> bool:
        """Whether the network is asked for images without condition."""
        return self.guidance_scale != 1 and self.guidance in ("classifier_free", "adaptive_projected")

    def make_solver(self, log_p: LogProbability | None = None) -> Solver:
        """The solver with its options; the ancestral one guides by a classifier in its own way.

        Raises:
            UserError: no such solver, or an option it has not.
        """
        given: dict[str, Any] = {"eta": self.eta} if self.eta >= 0 else {}
        if log_p is not None and self.solver == "ddpm":
            given |= {"log_p": log_p, "scale": self.classifier_scale}
        given |= {"churn": self.churn} if self.churn else {}
        for option in given:
            if self.solver not in OPTIONS.get(option, (self.solver,)) and self.solver in registry.names(solvers):
                raise UserError(
                    f"{option}: {self.solver} adds no such noise; only {' and '.join(OPTIONS[option])} take {option}"
                )
        solver: Solver = registry.build(solvers, "config.sample.solver", self.solver, given)
        return solver

    def make_grid(self, process: Process) -> np.ndarray:
        """(N, 2) steps from `strength` to the data."""
        return grids.starting_at(grids.make(self.grid, process, self.steps, self.shift), self.strength)

    def make_denoiser(
        self,
        process: Process,
        model_fn: ModelFn,
        null: Any,
        weak_fn: ModelFn | None = None,
        log_p: LogProbability | None = None,
    ) -> Denoiser:
        """The network under guidance and threshold.

        Args:
            process: what the images went through.
            model_fn: the network.
            null: the unconditional twin of a condition.
            weak_fn: the weaker network of autoguidance.
            log_p: the classifier that guides.
        """
        interval = self._interval(process)
        denoise: Denoiser
        if self.guidance == "adaptive_projected" and self.guidance_scale != 1:
            denoise = denoisers.AdaptiveProjectedGuidance(
                process,
                model_fn,
                null,
                self.guidance_scale,
                self.guidance_parallel,
                self.guidance_longest,
                self.guidance_momentum,
            )
        else:
            denoise = denoisers.Network(process, self._guided(model_fn, null, weak_fn, interval))
        if log_p is not None and self.solver != "ddpm":
            denoise = denoisers.ClassifierGuidance(denoise, log_p, self.classifier_scale)
        if self.threshold == "static":
            return denoisers.StaticClip(denoise)
        return denoisers.DynamicThreshold(denoise) if self.threshold == "dynamic" else denoise

    def _interval(self, process: Process) -> Interval:
        """The guidance interval in network times; both ends belong to it, however the sampler's times round."""
        first, second = self.guidance_interval
        low, high = (np.asarray(max(t, 1e-9)) for t in (first * (1 - ROUNDING), second * (1 + ROUNDING)))
        return (
            float(process.network_time(low)) if first > 0 else guidance.ALWAYS[0],
            float(process.network_time(high)) if second < 1 else guidance.ALWAYS[1],
        )

    def _guided(self, model_fn: ModelFn, null: Any, weak_fn: ModelFn | None, interval: Interval) -> ModelFn:
        options = (self.guidance_scale, interval, self.guidance_rescale)
        if self.guidance != "autoguidance":
            return guidance.classifier_free(model_fn, null, *options)
        if weak_fn is None:
            raise UserError("guidance: autoguidance needs a weaker network; name its run by --weak_workdir")
        return guidance.autoguidance(model_fn, weak_fn, *options)
