"""Other runs that help one to draw: those that guide it, and one that refines what it drew."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from archirf_jax.contracts import Batch, Condition
from archirf_jax.errors import UserError
from archirf_jax.first_stages.autoencoder import RUN
from archirf_jax.launch.runs import Run
from archirf_jax.samplers.config import SHORT, SamplerConfig
from archirf_jax.samplers.grids.base import ROUNDING, ending_at
from archirf_jax.tasks.classifier import Classifier
from archirf_jax.tasks.diffusion import Diffusion

# Fields of process and data in which a run that guides may differ from the guided one.
DIFFERING = {"weak_workdir": (), "classifier": ("process.variance",)}
SAME_DATA = ("num_classes", "channels", "image_size")
SHARED = ("solver", "grid", "steps", "threshold", "hoist")  # what is asked of a run in these holds for its refiner, too
HANDOVER = 0.2  # the share of noise levels that is left to a refiner (Podell et al. 2023, Sec. 2.5)
PROBE = 64  # pixels a side of the image by which latents are compared
ALIKE = 0.1  # latents of one space differ less: half precision, and decoders that were mended, move them by 0.01


class Guides(NamedTuple):
    """What guides besides the network itself; None where it does not.

    Attributes:
        weak: the run of the weaker network of autoguidance.
        classifier: the run of a classifier.
        null: conditions that stand for none in place of the conditioners' own, without batch axis.
    """

    weak: Run | None = None
    classifier: Run | None = None
    null: Condition | None = None

    def directories(self) -> dict[str, str]:
        """Those of the runs that guide, by name."""
        runs = {"weak": self.weak, "classifier": self.classifier}
        return {name: str(run.directory) for name, run in runs.items() if run is not None}


ALONE = Guides()


def check_guide(run: Run, other: Run, field: str) -> None:
    """Raise a UserError unless a run that guides is about the same noise, classes and images.

    Args:
        run: the guided one.
        other: the one that guides.
        field: how it is called: a key of DIFFERING.
    """
    if field == "classifier" and not isinstance(other.task, Classifier):
        what = "is not the run of a classifier; train one by configs/adm_classifier.py"
        raise UserError(field, str(other.directory), what)
    for name, ours in _compared(run).items():
        theirs = _compared(other).get(name)
        if name not in DIFFERING[field] and ours != theirs:
            raise UserError(
                *(field, str(other.directory)),
                f"must have the process, classes and image size of the guided run, but {name} is {theirs!r} there and "
                f"{ours!r} here",
            )


def _compared(run: Run) -> dict[str, Any]:
    process: Any = run.task.process  # type: ignore[attr-defined]
    fields = {f"process.{field.name}": getattr(process, field.name) for field in dataclasses.fields(process)}
    data = {f"data.{name}": run.config.data[name] for name in SAME_DATA}
    return {"process.name": run.config.process.name} | data | fields


class Refiner(NamedTuple):
    """A run that goes on where another one stops, and draws the rest (Podell et al. 2023, "SDXL", Sec. 2.5).

    Attributes:
        run: the refiner.
        config: how it samples.
        handover: the time, in (0, 1), from which it draws: steps that start above it are those of the base.
        batch: fields (N, ...) that its conditions are made of.
        null: what stands for no condition; None = its conditioners' own.
    """

    run: Run
    config: SamplerConfig
    handover: float
    batch: Batch
    null: Condition | None = None

    def after(self, process: Any, config: SamplerConfig) -> SamplerConfig | None:
        """How the refiner samples from where the base stops; None = the base is to draw all steps.

        Args:
            process: of the base.
            config: how the base samples.

        Raises:
            UserError: about "handover": one of the two has no step.
        """
        whole = config.make_grid(process)
        before = ending_at(whole, self.handover)
        if len(before) == len(whole):
            return None
        found, own = self.config.replace(strength=float(before[-1, 1])), diffusion(self.run).process
        if found.strength < self.config.make_grid(own)[-1, 0] - ROUNDING:
            what = f"leaves the refiner none of its {found.steps} steps, as the base stops at {found.strength:.4g}"
            raise UserError("handover", self.handover, f"{what}; take more steps or hand over earlier")
        return found


def shared(changes: Mapping[str, Any]) -> dict[str, Any]:
    """The changes of how a run samples that hold for its refiner as well, whose guidance is its own."""
    return {name: value for name, value in changes.items() if SHORT.get(name, name).partition(".")[0] in SHARED}


def diffusion(run: Run) -> Diffusion:
    """The task of a run that draws images.

    Raises:
        UserError: it is another one.
    """
    if not isinstance(run.task, Diffusion):
        what = f"is the run of the task {run.config.task}, which does not draw images"
        raise UserError(run.field, str(run.directory), what)
    return run.task


def check_refiner(run: Run, other: Run, handover: float) -> None:
    """Raise a UserError unless `other` can go on with what `run` drew: the same x at the same noise.

    What the networks predict, how they are conditioned and how wide they are may differ.
    """
    if not 0 < handover < 1:
        raise UserError("handover", handover, "must lie above 0 and below 1: the time from which the refiner draws")
    base, refiner, place = diffusion(run), diffusion(other), str(other.directory)
    times = np.linspace(0, 1, 1001)
    if not all(
        np.allclose(getattr(base.process, name)(times), getattr(refiner.process, name)(times), 1e-4, 1e-6)
        for name in ("alpha", "sigma")
    ):
        names = f"{other.config.process.name}, and this run by {run.config.process.name}"
        what = f"noises images by {names}, whose noise is another at the same time; give a run of the same noise"
        raise UserError("refiner", place, what)
    if base.shape != refiner.shape:
        what = f"diffuses arrays of {refiner.shape}, and this run of {base.shape}; give a run of the same data"
        raise UserError("refiner", place, what)
    if not _same_space(run, other):
        what = "diffuses the latents of another autoencoder than this run; give one that was trained on the same"
        raise UserError("refiner", place, what)


def _same_space(run: Run, other: Run) -> bool:
    """Whether two runs encode an image alike; autoencoders may be kept in other types."""
    stages = [each.config.get("first_stage", {}) for each in (run, other)]
    if [stage.get("name", "image") for stage in stages] == ["image", "image"]:
        return True
    if RUN in run.runs and RUN in other.runs and stages[0] == stages[1]:
        if run.runs[RUN].digest() == other.runs[RUN].digest():
            return True
    data = run.config.data
    side = min(data.image_size, PROBE)
    probe = np.random.default_rng(0).integers(0, 256, (1, side, side, data.channels), np.uint8)
    if other.config.data.channels != data.channels:
        return False
    ours, theirs = run.encode(probe), other.encode(probe)
    return ours.shape == theirs.shape and bool(np.std(ours - theirs) < ALIKE * np.std(ours))
