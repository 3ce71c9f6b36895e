"""How to sample, as a configuration, flags and the API say it: choices by name with their fields, and their parts."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from archirf_jax import registry
from archirf_jax.contracts import Condition, Denoiser, Solver
from archirf_jax.errors import UserError, nearest
from archirf_jax.processes.base import Process
from archirf_jax.samplers import denoisers, grids, guidance, solvers
from archirf_jax.samplers.denoisers import LogProbability
from archirf_jax.samplers.grids import Grid
from archirf_jax.samplers.ranges import check_range

THRESHOLDS = {None: None, "static": denoisers.StaticClip, "dynamic": denoisers.DynamicThreshold}
CHOICES = ("solver", "grid", "guidance")
KEPT = ("scale",)  # fields that every guidance has; they stay when its name changes
# Short names of fields, which are the names of flags.
SHORT = {
    "eta": "solver.eta",
    "churn": "solver.churn",
    "shift": "grid.shift",
    "guidance_scale": "guidance.scale",
    "guidance_interval": "guidance.interval",
    "guidance_rescale": "guidance.rescale",
    "apg_eta": "guidance.eta",
    "apg_norm_threshold": "guidance.norm_threshold",
    "apg_momentum": "guidance.momentum",
}
RESPACING = re.compile(r"(ddim)?\d[\d,]*")  # a grid that is named by its spacing


@dataclasses.dataclass(frozen=True)
class Named:
    """A solver, grid or guidance by name.

    Attributes:
        name: a file of its folder, or a module of the user's own.
        fields: those that are set, sorted by name; the others have the choice's own defaults.
    """

    name: str
    fields: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def of(cls, value: Any) -> Named:
        """From a name, or a mapping with a name and fields, of which None means the default."""
        fields = {"name": value} if isinstance(value, str) else dict(value)
        name = fields.pop("name")
        return Named(name).set(fields)

    def get(self, field: str) -> Any:
        """The value that is set, or None."""
        return dict(self.fields).get(field)

    def set(self, fields: Mapping[str, Any]) -> Named:
        """With these fields; None takes a field back to its default."""
        given = {k: tuple(v) if isinstance(v, list) else v for k, v in (dict(self.fields) | dict(fields)).items()}
        return Named(self.name, tuple(sorted((k, v) for k, v in given.items() if v is not None)))

    def to_dict(self) -> dict[str, Any]:
        """The mapping that `of` reads."""
        return {"name": self.name, **dict(self.fields)}


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """One way to sample; `config.sample`, flags and the API are all read into this.

    Attributes:
        solver: a file of `samplers.solvers` and its fields.
        grid: a file of `samplers.grids` and its fields; see also `from_config`.
        guidance: a file of `samplers.guidance` and its fields, of which `scale` 1 is off.
        steps: N; a respaced grid has its own number, which this is then.
        threshold: None, "static" (x0 is clipped to [-1, 1]) or "dynamic" (Imagen's).
        classifier_scale: of the gradient of a classifier, where one guides.
        strength: the time from which sampling starts, where it starts from an image.
        hoist: compute what is the same at every step, such as weights in bfloat16, once; it stays in memory.

    Raises:
        UserError: a value out of its range, an unknown name, or fields that a choice does not have.
    """

    solver: Named = Named("euler")
    grid: Named = Named("uniform")
    guidance: Named = Named("classifier_free")
    steps: int = 50
    threshold: str | None = None
    classifier_scale: float = 1.0
    strength: float = 1.0
    hoist: bool = True

    def __post_init__(self) -> None:
        if self.threshold not in THRESHOLDS:
            allowed = [name for name in THRESHOLDS if name]
            hint = nearest(str(self.threshold), allowed)
            raise UserError("sample.threshold", self.threshold, f"is not None or one of {', '.join(allowed)}{hint}")
        _check_steps(self.steps)
        check_range("sample.classifier_scale", self.classifier_scale, 0)
        check_range("sample.strength", self.strength, 0, 1, above=True)
        if not isinstance(self.hoist, bool):
            raise UserError("sample.hoist", self.hoist, "must be True or False")
        if self._grid.count not in (None, self.steps):
            raise UserError("sample.steps", self.steps, f"must be {self._grid.count} with this grid, or left out")
        self.make_solver()
        self._make_guidance(None, {}, None)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> SamplerConfig:
        """From `config.sample`; other keys and values of None are ignored.

        A solver, grid or guidance is a name, or a mapping with its name and fields. A grid named such as 250, 10,20,30
        or ddim50 is the grid "respaced" with that spacing, and `steps` may be left out.
        """
        given = {key: value for key, value in config.items() if key in NAMES and value is not None}
        given |= {key: _named(key, given[key]) for key in CHOICES if key in given}
        count = _make_grid(given["grid"]).count if "grid" in given else None
        return cls(**({} if count is None else {"steps": count}) | given)

    def replace(self, **changes: Any) -> SamplerConfig:
        """With changes by short name (`eta`, `guidance_scale`, see `SHORT`) or dotted name ("solver.churn_min").

        Another solver, grid or guidance by name begins with its own defaults, except for the scale of guidance. Steps
        without a grid make a respaced grid one of so many steps.

        Raises:
            UserError: as of the class, an unknown name, or steps and a grid that contradict each other.
        """
        given = {SHORT.get(name, name): value for name, value in changes.items()}
        _check_names(given)
        made = {name: given[name] for name in NAMES if name in given and name not in CHOICES}
        made |= {choice: _changed(choice, getattr(self, choice), given) for choice in CHOICES}
        grid, named = _make_grid(made["grid"]), any(name.partition(".")[0] == "grid" for name in given)
        if grid.count is not None and "steps" in made and not named:
            _check_steps(made["steps"])
            made["grid"] = made["grid"].set(dataclasses.asdict(grid.with_count(made["steps"])))
        elif grid.count is not None:
            made = {"steps": grid.count} | made
        return dataclasses.replace(self, **made)

    def to_dict(self) -> dict[str, Any]:
        """The mapping that `from_config` reads."""
        found = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return found | {name: found[name].to_dict() for name in CHOICES}

    @property
    def guidance_scale(self) -> float:
        """The scale of the guidance; 1 is off."""
        return float(self._make_guidance(None, {}, None).scale)

    @property
    def asks_null(self) -> bool:
        """Whether the network is asked without condition."""
        made = self._make_guidance(None, {}, None)
        return made.scale != 1 and hasattr(made, "null")

    @property
    def asks_weak(self) -> bool:
        """Whether a weaker network is asked."""
        made = self._make_guidance(None, {}, None)
        return made.scale != 1 and hasattr(made, "weak")

    def make_solver(self, log_p: LogProbability | None = None) -> Solver:
        """The solver; one that guides by a classifier in its own way gets it."""
        offered = {"log_p": log_p, "classifier_scale": self.classifier_scale}
        made: Solver = _build(solvers, "solver", self.solver, ("init", "step"), offered)
        return made

    def make_grid(self, process: Process) -> np.ndarray:
        """(N, 2) steps from `strength` to the data.

        Raises:
            UserError: the process does not have this grid or so many steps, or `strength` is below all of them.
        """
        return grids.starting_at(self._grid.times(process, self.steps), self.strength)

    def make_denoiser(
        self,
        inner: Denoiser,
        null: Condition,
        weak: Denoiser | None = None,
        log_p: LogProbability | None = None,
    ) -> Denoiser:
        """The denoiser under guidance, classifier and threshold.

        Args:
            inner: the network's denoiser.
            null: the condition that stands for none.
            weak: the weaker denoiser of autoguidance.
            log_p: the classifier that guides.

        Raises:
            UserError: a weaker denoiser is needed.
        """
        if self.asks_weak and weak is None:
            raise UserError("sample.guidance.name", self.guidance.name, "needs a weaker network to guide by")
        made = inner if self.guidance_scale == 1 else self._make_guidance(inner, null, weak)
        if log_p is not None and not hasattr(self.make_solver(), "log_p"):
            made = denoisers.ClassifierGuidance(made, log_p, self.classifier_scale)
        threshold = THRESHOLDS[self.threshold]
        return made if threshold is None else threshold(made)

    @functools.cached_property
    def _grid(self) -> Grid:
        return _make_grid(self.grid)

    def _make_guidance(self, inner: Denoiser | None, null: Condition, weak: Denoiser | None) -> Any:
        offered = {"inner": inner, "null": null, "weak": weak}
        return _build(guidance, "guidance", self.guidance, ("init", "scale"), offered)


NAMES = tuple(inspect.signature(SamplerConfig).parameters)


def _check_steps(steps: Any) -> None:
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise UserError("sample.steps", steps, "must be a whole number, 1 or more")


def _check_names(given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        if name.partition(".")[0] not in (CHOICES if "." in name else NAMES):
            hint = nearest(name, [*NAMES, *SHORT])
            raise UserError(f"sample.{name}", value, f"is given, but there is no such field{hint}")


def _named(kind: str, value: Any) -> Named:
    made = value if isinstance(value, Named) else Named.of(value)
    if kind == "grid" and RESPACING.fullmatch(made.name):
        return Named("respaced").set({**dict(made.fields), "spacing": made.name})
    return made


def _changed(kind: str, old: Named, given: Mapping[str, Any]) -> Named:
    """The old choice or the one that is named, with the fields that stay and those that are given."""
    fields = {name.partition(".")[2]: value for name, value in given.items() if name.startswith(f"{kind}.")}
    name = fields.pop("name", given.get(kind))
    if name is None:
        return old.set(fields)
    new = _named(kind, name)
    if new.name == old.name:
        return old.set(dict(new.fields) | fields)
    kept = {field: old.get(field) for field in KEPT if kind == "guidance"}
    return Named(new.name).set(kept | dict(new.fields) | fields)


def _make_grid(named: Named) -> Grid:
    made: Grid = _build(grids, "grid", named, Grid, {})
    return made


def _build(room: Any, kind: str, named: Named, made: Any, offered: Mapping[str, Any]) -> Any:
    return registry.build(room, f"sample.{kind}.name", named.name, dict(named.fields), kind=made, offered=offered)
