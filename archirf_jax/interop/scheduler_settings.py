"""diffusers' scheduler_config.json: the process that a network was trained with, and how its pipeline samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from absl import logging

from archirf_jax.errors import UserError

Settings = Mapping[str, Any]
SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
SPACINGS = ("leading", "trailing", "linspace")
# The scheduler's class -> our solver with its fields, and the spacing where the settings have none.
SOLVERS: dict[str, tuple[dict[str, Any], str]] = {
    "DDIMScheduler": (dict(name="ddim"), "leading"),
    "EulerDiscreteScheduler": (dict(name="euler"), "linspace"),
    # On x / alpha over sigma / alpha, Euler's ancestral steps are those of DDIM with all its noise.
    "EulerAncestralDiscreteScheduler": (dict(name="ddim", eta=1.0), "linspace"),
    "DPMSolverMultistepScheduler": (dict(name="dpmpp_2m"), "linspace"),
}
OTHERS = (dict(name="ddim"), "leading")
# Classes that end at the data's step 0 unless they are told to end at the data.
ENDS = {"DDIMScheduler": True, "PNDMScheduler": False}


def process_fields(settings: Settings) -> dict[str, Any]:
    """The group `process` that a scheduler's settings say.

    Raises:
        UserError: a process that this project does not have.
    """
    if settings.get("trained_betas") is not None:
        raise UserError("checkpoint", "trained_betas", "in scheduler_config.json is not read; it must be null")
    schedule = _choice(settings, "beta_schedule", "linear", SCHEDULES)
    ends = {"beta_start": settings.get("beta_start", 1e-4), "beta_end": settings.get("beta_end", 0.02)}
    return dict(
        name="ddpm",
        schedule=schedule,
        steps=settings.get("num_train_timesteps", 1000),
        **({} if schedule == "cosine" else ends),
        prediction=_choice(settings, "prediction_type", "epsilon", PREDICTIONS),
        variance="fixed_small",
        zero_terminal_snr=bool(settings.get("rescale_betas_zero_snr", False)),
    )


def sample_fields(settings: Settings, offset: int | None = None) -> dict[str, Any]:
    """The fields `solver` and `grid` of the group `sample` that a scheduler's settings say.

    Args:
        settings: of the scheduler.
        offset: in place of its steps_offset, where the pipeline decides it.

    Raises:
        UserError: a spacing of steps that this project does not have.
    """
    kind = str(settings.get("_class_name"))
    solver, spacing = SOLVERS.get(kind, OTHERS)
    if kind not in SOLVERS:
        logging.info("the pipeline's scheduler is %s; samples are drawn by %s instead", kind, solver["name"])
    spacing = _choice(settings, "timestep_spacing", spacing, dict(zip(SPACINGS, SPACINGS, strict=True)))
    if settings.get("use_karras_sigmas"):
        return dict(solver=dict(solver), grid=dict(name="karras"))
    offset = settings.get("steps_offset", 0) if offset is None else offset
    grid: dict[str, Any] = dict(name=spacing)
    if spacing == "leading":
        grid["offset"] = offset
    if spacing != "linspace":
        grid["ends_at_data"] = bool(settings.get("set_alpha_to_one", ENDS.get(kind, True))) if kind in ENDS else True
    if kind == "DPMSolverMultistepScheduler" and spacing != "trailing":
        grid["skipped"] = 1
    return dict(solver=dict(solver), grid=grid)


def _choice(settings: Settings, name: str, default: str, allowed: Mapping[str, str]) -> str:
    value = settings.get(name, default)
    if value not in allowed:
        what = f"in scheduler_config.json is not read; it must be one of {', '.join(allowed)}"
        raise UserError("checkpoint", f"{name}={value!r}", what)
    return allowed[value]
