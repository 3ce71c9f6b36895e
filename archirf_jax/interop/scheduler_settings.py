"""diffusers' scheduler_config.json: the process that a network was trained with, and how its pipeline samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import logging

from archirf_jax.errors import UserError
from archirf_jax.processes.times import shift_time

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
FLOW = "FlowMatchEulerDiscreteScheduler"
# Of a flow's scheduler: setting -> its only value that is read.
FLOW_FIXED = {
    **{"time_shift_type": "exponential", "shift_terminal": None, "invert_sigmas": False, "stochastic_sampling": False},
    **{f"use_{name}_sigmas": False for name in ("karras", "exponential", "beta")},
}
LINE = ("base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len")
# Classes that end at the data's step 0 unless their settings let them end at the data.
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


def flow_process_fields(settings: Settings) -> dict[str, Any]:
    """The group `process` of a rectified flow that a scheduler's settings say."""
    scale = float(settings.get("num_train_timesteps", 1000))
    return dict(name="rectified_flow", path="linear", prediction="velocity", time_scale=scale)


def flow_sample_fields(settings: Settings, tokens: int) -> dict[str, Any]:
    """The fields `solver` and `grid` of the group `sample` that the settings of a flow's scheduler say.

    Even times end at the first one of training, which a constant shift has moved before it moves all of them.

    Args:
        settings: of the scheduler.
        tokens: of an image, for a shift that depends on them.

    Raises:
        UserError: times that this project does not have.
    """
    for name, value in FLOW_FIXED.items():
        if settings.get(name, value) not in (value, value or None):
            what = f"in scheduler_config.json is not read; it must be {value!r}"
            raise UserError("checkpoint", f"{name}={settings[name]!r}", what)
    if settings.get("_class_name") != FLOW:
        logging.info("the pipeline's scheduler is %s; samples are drawn by euler instead", settings.get("_class_name"))
    solver, first = dict(name="euler"), 1 / settings.get("num_train_timesteps", 1000)
    if settings.get("use_dynamic_shifting"):
        line = {name: settings[name] for name in LINE if settings.get(name) is not None}
        return dict(solver=solver, grid=dict(name="dynamic_shift", image_seq_len=tokens, last=first, **line))
    shift = float(settings.get("shift", 1.0))
    return dict(solver=solver, grid=dict(name="shifted", shift=shift, last=float(shift_time(np.asarray(first), shift))))


def _choice(settings: Settings, name: str, default: str, allowed: Mapping[str, str]) -> str:
    value = settings.get(name, default)
    if value not in allowed:
        what = f"in scheduler_config.json is not read; it must be one of {', '.join(allowed)}"
        raise UserError("checkpoint", f"{name}={value!r}", what)
    return allowed[value]
