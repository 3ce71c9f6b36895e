"""The flags of a run and of how it is sampled, which `sample` and `evaluate` have in common."""

from __future__ import annotations

import pathlib
import re
import types
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from archirf_jax.errors import UserError
from archirf_jax.launch.flags import WORKDIR, Flag

if TYPE_CHECKING:
    from archirf_jax.launch.companions import Guides, Refiner
    from archirf_jax.launch.prompts import Prompt
    from archirf_jax.launch.runs import Run
    from archirf_jax.launch.sheet_rows import Rows
    from archirf_jax.samplers.config import SamplerConfig

RUN = (
    WORKDIR,
    Flag("step", "checkpoint to use; default: the newest", int),
    Flag("ema", "average to use, such as decay_0.999; default: the one of config.ema.decay", str, "ema"),
    Flag("seed", "seed of the noise", int, 0, low=0, high=2**31 - 1),
    Flag("batch_size", "images at a time", int, 128, low=1, high=1_000_000),
)
# Defaults are those of the run's config.sample.
SHORT = (
    Flag("solver", "euler, heun, ddim, ...: a file of archirf_jax/samplers/solvers", field="sample.solver.name"),
    Flag("steps", "solver steps", int, low=1, high=1_000_000, field="sample.steps"),
    Flag("grid", "uniform, shifted, karras, trailing, ... or a respacing such as 250", field="sample.grid.name"),
    Flag("shift", "SD3's timestep shift, for the grid shifted", float, field="sample.grid.shift"),
    Flag("eta", "noise of ddim (0 to 1) and euler_maruyama", float, field="sample.solver.eta"),
    Flag("churn", "noise of edm (S_churn)", float, field="sample.solver.churn"),
    Flag("guidance", "classifier_free, adaptive_projected or autoguidance", field="sample.guidance.name"),
    Flag("guidance_scale", "scale of guidance; 1 is off", float, field="sample.guidance.scale"),
    Flag("guidance_interval", "times in which guidance acts, such as 0.2,0.8", field="sample.guidance.interval"),
    Flag("guidance_rescale", "rescaling against high contrast, 0 to 1", float, field="sample.guidance.rescale"),
    Flag("apg_eta", "adaptive_projected: weight of the parallel part", float, field="sample.guidance.eta"),
    Flag(*("apg_norm_threshold", "adaptive_projected: largest length", float), field="sample.guidance.norm_threshold"),
    Flag("apg_momentum", "adaptive_projected: weight of earlier differences", float, field="sample.guidance.momentum"),
    Flag("classifier_scale", "scale of the gradient of --classifier", float, field="sample.classifier_scale"),
    Flag("threshold", "threshold of predicted images: static or dynamic", field="sample.threshold"),
    Flag("strength", "how much of --image becomes noise, above 0 to 1", float, field="sample.strength"),
)
VALUE_RANGE = Flag(
    *("value_range", "levels of the files that are black and white, such as 0,4095; None = what the format says"),
    field="data.value_range",
)
SAMPLING = (
    *SHORT,
    Flag("sample", "any field of how to sample, such as --sample.solver.churn_max=40", dict),
    Flag("weak_workdir", "autoguidance: run of the weaker network; default: this run", pathlib.Path),
    Flag("weak_step", "autoguidance: checkpoint of the weaker network", int),
    Flag("autoencoder", "run that decodes what a network of latents draws, where it has none of its own", pathlib.Path),
    Flag("classifier", "guide by the noisy classifier of this run", pathlib.Path),
    Flag("conditions", ".npz of what a network takes besides labels or prompts, whose rows are its own", pathlib.Path),
)


def value_range(text: str) -> tuple[float, float] | None:
    """What --value_range means: "0,4095" -> (0.0, 4095.0), "None" -> None; raises as `pair`."""
    return None if text == "None" else pair("data.value_range", text, "0,4095")


def how(args: types.SimpleNamespace) -> dict[str, Any]:
    """The changes of how the run is sampled, for `SamplerConfig.replace`.

    Raises:
        UserError: a value of another form, or flags that do not go together.
    """
    changes = {flag.name: getattr(args, flag.name) for flag in SHORT if getattr(args, flag.name) is not None}
    if "guidance_interval" in changes:
        changes["guidance_interval"] = pair("sample.guidance.interval", changes["guidance_interval"], "0.2,0.8")
    changes |= _changes(args.sample)
    if (args.weak_workdir, args.weak_step) != (None, None) and args.guidance != "autoguidance":
        raise UserError("--weak_workdir and --weak_step belong to --guidance=autoguidance")
    if args.classifier_scale is not None and args.classifier is None:
        raise UserError(
            "sample.classifier_scale", args.classifier_scale, "needs a classifier; name its run by --classifier"
        )
    return changes


def _changes(overrides: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """The changes that --GROUP.NAME=VALUE asks for, by name without the group."""
    from archirf_jax.launch.overrides import literal

    return {name.partition(".")[2]: literal(text) for name, text in overrides}


def pair(field: str, text: str, example: str) -> tuple[float, float]:
    """ "0.2,0.8" -> (0.2, 0.8).

    Raises:
        UserError: about `field`: not two numbers.
    """
    try:
        low, high = map(float, text.strip("()").split(","))
    except ValueError as e:
        raise UserError(field, text, f"is not a pair of numbers such as {example}") from e
    return low, high


def size(text: str) -> tuple[int, int]:
    """ "512x768" -> (512, 768), height and width.

    Raises:
        UserError: about "size": another form.
    """
    found = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    if not found:
        raise UserError("size", text, "is not height and width in pixels, such as 512x768")
    return int(found[1]), int(found[2])


def opened(args: types.SimpleNamespace) -> Run:
    """The run of --workdir, its --step, its --ema and its --autoencoder."""
    from archirf_jax.launch.runs import open_run

    return _decoded(open_run(args.workdir, args.step, args.ema), args)


def guides_of(args: types.SimpleNamespace, run: Run, config: SamplerConfig, rows: Rows | None = None) -> Guides:
    """The runs that guide, as far as flags ask for them.

    Raises:
        UserError: there is no such run, or it does not fit this one.
    """
    from archirf_jax.launch.companions import Guides, check_guide
    from archirf_jax.launch.runs import open_run

    weak = classifier = None
    if config.asks_weak and (args.weak_workdir, args.weak_step) != (None, None):
        place = args.weak_workdir or args.workdir
        weak = open_run(place, args.weak_step, field="weak_workdir")
        check_guide(run, weak, "weak_workdir")
    if args.classifier is not None:
        classifier = open_run(args.classifier, field="classifier")
        check_guide(run, classifier, "classifier")
    return Guides(weak, classifier, rows.null if rows else None)


def refiner_of(
    args: types.SimpleNamespace, run: Run, rows: Rows, columns: int, prompts: Sequence[Prompt] | None
) -> Refiner | None:
    """The run of --refiner, which goes on with what `rows` has `columns` images each of; None where there is none.

    Raises:
        UserError: there is no such run, or it does not fit this one.
    """
    from archirf_jax.launch import companions, sheet_rows
    from archirf_jax.launch.runs import open_run

    if args.refiner is None:
        return None
    other = open_run(args.refiner, field="refiner")
    companions.diffusion(other)
    if args.autoencoder is not None and other.config.get("first_stage", {}).get("name", "image") == "image":
        other = _decoded(other, args)
    if args.size is not None:
        other = other.at_size(*size(args.size))
    changes = companions.shared(how(args)) | _changes(args.refine)
    config = companions.diffusion(other).sampling.replace(**changes)
    handover = companions.HANDOVER if args.handover is None else args.handover
    return sheet_rows.refiner_of(run, other, config, handover, rows, columns, prompts, args.negative_prompt)


def _decoded(run: Run, args: types.SimpleNamespace) -> Run:
    from archirf_jax.launch import latents

    return run if args.autoencoder is None else latents.with_autoencoder(run, args.autoencoder)
