"""A run and how to sample it, as flags say it: what `sample` and `evaluate` have in common."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import flags

from archirf_jax import registry, tasks
from archirf_jax.errors import UserError
from archirf_jax.launch import config as configuration
from archirf_jax.samplers.choice import Choice
from archirf_jax.tasks.building import make_process
from archirf_jax.tasks.classifier import Classifier
from archirf_jax.tasks.conditions import read as read_conditions
from archirf_jax.tasks.diffusion import NOTHING, Diffusion, Inputs, Judge
from archirf_jax.training.checkpoints import Checkpoints

flags.disclaim_key_flags()  # the flags below belong to the command that asks for them

# Fields of the process and data in which a second run may differ.
DIFFERING = {
    "weak_workdir": (),
    "classifier": ("process.condition_dropout", "process.variance", "process.bound_weight", "process.likelihood"),
}
SAME_DATA = ("num_classes", "channels", "image_size")
# What a choice brings with it: what the run set for its own does not follow to another.
OPTIONS = {
    "solver": ("eta", "churn"),
    "grid": ("shift",),
    "guidance": ("guidance_rescale", "guidance_interval", "guidance_parallel", "guidance_longest", "guidance_momentum"),
}
EDITS = ("strength", "image_to")  # flags of `sample` that are about a field of `Choice` or what it leads to


class Opened(NamedTuple):
    """A run that can be drawn from.

    Attributes:
        step: of its checkpoint.
        params: the average that was asked for.
        choice: how to sample.
        inputs: weaker network, classifier and conditions, where they are asked for.
        weaker: the task of the weaker network.
        log_p: makes log p(y | x_t) of the classifier's parameters; None without one.
    """

    step: int
    params: Any
    choice: Choice
    inputs: Inputs
    weaker: Diffusion
    log_p: Judge | None


class Flags:
    """The flags, defined for the command that makes this once, when it is imported."""

    def __init__(self) -> None:
        text, number, real = flags.DEFINE_string, flags.DEFINE_integer, flags.DEFINE_float
        self._workdir = text("workdir", None, "run directory", required=True)
        self._step = number("step", None, "checkpoint to use; default: the newest")
        average = "which average to draw with, such as decay_0.999; default: config.ema.decay's"
        self.ema = text("ema", "ema", average)
        self.seed = number("seed", 0, "of the noise", lower_bound=0, upper_bound=2**31 - 1)
        self.batch_size = number("batch_size", 128, "images drawn at a time", lower_bound=1)
        # How to sample; what is not given is the run's config.sample.
        self.choice = {
            "solver": text("solver", None, "euler, heun, ddim, ...: a file of archirf_jax/samplers/solvers"),
            "steps": number("steps", None, "solver steps", lower_bound=1, upper_bound=1_000_000),
            "grid": text("grid", None, "uniform, shifted, karras, trailing, ... or a respacing such as 250"),
            "shift": real("shift", None, "SD3's timestep shift, for the grid 'shifted'"),
            "eta": real("eta", None, "noise of ddim (0 to 1) and euler_maruyama", lower_bound=0),
            "churn": real("churn", None, "noise of edm (S_churn)", lower_bound=0),
            "guidance": text("guidance", None, "classifier_free, adaptive_projected or autoguidance"),
            "guidance_scale": real("guidance_scale", None, "1 is off", lower_bound=0),
            "guidance_interval": text("guidance_interval", None, "times in which guidance acts, such as 0.2,0.8"),
            "guidance_rescale": real("guidance_rescale", None, "0 to 1, against too much contrast"),
            "guidance_parallel": real("guidance_parallel", None, "adaptive_projected: share along the image"),
            "guidance_longest": real("guidance_longest", None, "adaptive_projected: length to cut to; 0 = never"),
            "guidance_momentum": real("guidance_momentum", None, "adaptive_projected: weight of the past"),
            "classifier_scale": real("classifier_scale", None, "of the gradient of --classifier", lower_bound=0),
            "threshold": text("threshold", None, "none, static or dynamic"),
        }
        self._weak_workdir = text("weak_workdir", None, "autoguidance: run of the weaker network; default: this run")
        self._weak_step = number("weak_step", None, "autoguidance: its checkpoint")
        self._classifier = text("classifier", None, "guide by the noisy classifier of this run")
        rows = ".npz of what a network takes beside labels, such as tokens and pooled; --labels are its rows"
        self._conditions = text("conditions", None, rows)

    @property
    def workdir(self) -> pathlib.Path:
        """The run directory."""
        return pathlib.Path(self._workdir.value).expanduser()

    @property
    def given(self) -> dict[str, Any]:
        """The flags that say how to sample and were given, by name."""
        beside = (self._weak_workdir, self._weak_step, self._classifier, self._conditions)
        return {flag.name: flag.value for flag in (*self.choice.values(), *beside) if flag.present}

    def task(self) -> tuple[Any, Any]:
        """(configuration, task) of the run.

        Raises:
            UserError: there is no run, or its configuration does not fit together.
        """
        config = configuration.load(self.workdir)
        return config, registry.build(tasks, "config.task", config.task, {"config": config})

    def check(self) -> None:
        """Raise a UserError for flags that do not go together."""
        weak = (self._weak_workdir.value, self._weak_step.value)
        if weak != (None, None) and self.choice["guidance"].value != "autoguidance":
            raise UserError("--weak_workdir and --weak_step belong to --guidance=autoguidance")
        if self.choice["classifier_scale"].value is not None and self._classifier.value is None:
            raise UserError("--classifier_scale: needs a classifier; name its run by --classifier")

    def chosen(self, task: Diffusion, **changes: Any) -> Choice:
        """The run's way to sample, with the flags' changes and these.

        Raises:
            UserError: a value out of range, or two that do not fit.
        """
        given: dict[str, Any] = {name: flag.value for name, flag in self.choice.items() if flag.value is not None}
        if "guidance_interval" in given:
            given["guidance_interval"] = parse_interval(given["guidance_interval"])
        for name, options in OPTIONS.items():
            if given.get(name, getattr(task.choice, name)) != getattr(task.choice, name):
                given = {option: getattr(Choice, option) for option in options} | given
        return dataclasses.replace(task.choice, **given | changes)

    def open(self, task: Diffusion, **changes: Any) -> Opened:
        """Everything that is needed to draw; `changes` are of the choice.

        Raises:
            UserError: as `chosen`, or a run or file that is missing or does not fit.
        """
        choice = self.chosen(task, **changes)
        step, params = self.restore(task)
        given = self._read_conditions(task, choice)
        weak, weaker = self._weaker(task, choice)
        classifier, judging = self._judge()
        given = given._replace(weak=weak, classifier=classifier)
        return Opened(step, params, choice, given, weaker, judging.log_p if judging else None)

    def restore(self, task: Any) -> tuple[int, Any]:
        """(step, the average that was asked for) of the run."""
        return restore(self.workdir, task, self._step.value, item=self.ema.value)

    def as_flag(self, error: UserError) -> UserError:
        """The same with the name of the flag, where it is about a field of `Choice`."""
        field, colon, rest = str(error).removeprefix("config.sample.").partition(":")
        if field == "respacing":
            field, rest = "grid", f" a respacing,{rest}"
        return UserError(f"--{field}{colon}{rest}") if field in {*self.choice, *EDITS} else error

    def _weaker(self, task: Diffusion, choice: Choice) -> tuple[Any, Diffusion]:
        """Parameters and task of the weaker network, where autoguidance asks for one; it may be another network."""
        named, step = self._weak_workdir.value, self._weak_step.value
        if choice.guidance != "autoguidance" or (named, step) == (None, None):
            return None, task
        place = pathlib.Path(named).expanduser() if named else self.workdir
        other: Diffusion = beside(self.workdir, place, "weak_workdir")
        return restore(place, other, step, "weak_")[1], other

    def _judge(self) -> tuple[Any, Classifier | None]:
        """Parameters and task of the classifier that guides, if one does."""
        if self._classifier.value is None:
            return None, None
        place = pathlib.Path(self._classifier.value).expanduser()
        other = beside(self.workdir, place, "classifier")
        if not isinstance(other, Classifier):
            raise UserError(
                f"--classifier: {str(place)!r} is no classifier's run; train one by configs/adm_classifier.py"
            )
        return restore(place, other, None, "classifier")[1], other

    def _read_conditions(self, task: Diffusion, choice: Choice) -> Inputs:
        """What a network takes beside labels, from a file: its arrays, and null_... for those without.

        Raises:
            UserError: the network takes no such thing, none is given, or it has another shape.
        """
        names = sorted(task.example) if task.takes_conditions else []
        if not names and self._conditions.value is None:
            return NOTHING
        if not names or self._conditions.value is None:
            what = f"needs {', '.join(names)}; give an .npz file" if names else "takes labels alone; leave it out"
            raise UserError(f"--conditions: this network {what}")
        path = pathlib.Path(self._conditions.value).expanduser()
        rows, null = read_conditions(path, task, choice.asks_null())
        return NOTHING._replace(conditions=rows, null=null)


def parse_interval(text: str) -> tuple[float, float]:
    """ "0.2,0.8" -> (0.2, 0.8).

    Raises:
        UserError: not two numbers.
    """
    try:
        low, high = map(float, text.split(","))
    except ValueError as e:
        raise UserError(f"--guidance_interval: {text!r} is no pair of times such as 0.2,0.8") from e
    return low, high


def restore(
    workdir: pathlib.Path, task: Diffusion | Classifier, step: int | None, flag: str = "", item: str = "ema"
) -> tuple[int, Any]:
    """(step, averaged parameters) of a run, which flags called --`flag`workdir or --`flag`step, or --`flag`, named."""
    like = jax.eval_shape(task.init_params, jax.random.key(0))
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32), like)
    try:
        return Checkpoints(workdir / "checkpoints").restore_ema(like, step, item)
    except UserError as e:
        named = flag if flag in ("classifier", "features") else f"{flag}{'workdir' if step is None else 'step'}"
        raise UserError(f"--{named}: {e}") from e


def beside(workdir: pathlib.Path, place: pathlib.Path, flag: str) -> Any:
    """The task of a second run, which must be about the same noise, classes and images.

    Raises:
        UserError: they differ.
    """
    here, there = configuration.load(workdir), configuration.load(place, flag)
    for fields in (_names_and_sizes, _process_as_built):
        ours, theirs = fields(here), fields(there)
        for name in ours:
            if name not in DIFFERING[flag] and ours[name] != theirs[name]:
                raise UserError(
                    f"--{flag}: {str(place)!r} must have the process, classes and image size of --workdir, "
                    f"but config.{name} is {theirs[name]!r} there and {ours[name]!r} here"
                )
    return registry.build(tasks, "config.task", there.task, {"config": there})


def _names_and_sizes(config: Any) -> dict[str, Any]:
    return {"process.name": config.process.name} | {f"data.{name}": config.data[name] for name in SAME_DATA}


def _process_as_built(config: Any) -> dict[str, Any]:
    # A run need not have written down the fields that are as always.
    process: Any = make_process(config)
    return {f"process.{field.name}": getattr(process, field.name) for field in dataclasses.fields(process)}
