"""Objectives of every kind with a process that each is for, and their evaluation."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from archirf_jax.contracts import Metrics, ModelFn, Models, Objective, Setting
from archirf_jax.objectives.ddpm_hybrid import DdpmHybrid
from archirf_jax.objectives.regression import Regression
from archirf_jax.objectives.uncertainty import Uncertainty
from archirf_jax.processes.base import Process
from archirf_jax.processes.ddpm import DDPM
from archirf_jax.processes.edm import EDM
from archirf_jax.processes.rectified_flow import RectifiedFlow
from tests.processes.examples import LEARNERS


class Pair(NamedTuple):
    """An objective and what it is trained on."""

    process: Process
    objective: Objective


def pair(process: Process, **fields: Any) -> Pair:
    """A process with the objective that is usual for it."""
    if isinstance(process, DDPM):
        return Pair(process, DdpmHybrid(process=process, **fields))
    times = "log_normal" if isinstance(process, EDM) else "logit_normal"
    return Pair(process, Regression(**{"time_distribution": times} | fields))


PAIRS: dict[str, Pair] = {
    **{name: pair(process) for name, process in LEARNERS.items()},
    "linear-raw_time": pair(RectifiedFlow(time_scale=1.0), time_distribution="uniform", shift=3.0),
    "linear-x0-velocity": pair(RectifiedFlow(prediction="x0"), loss_space="velocity"),
    "ddpm-respaced": pair(DDPM(respacing="10,5"), weighting="min_snr"),
    "ddpm-regression": Pair(DDPM(), Regression(time_distribution="steps")),
    "edm-uncertain": Pair(EDM(time_scale=250.0), Uncertainty(time_distribution="log_normal")),
}
USUAL: dict[str, Process] = {"flow": RectifiedFlow(), "ddpm": DDPM(), "edm": EDM()}


class Evaluation(NamedTuple):
    """What was drawn and what came of it."""

    drawn: Any
    losses: jax.Array
    metrics: Metrics
    noted: dict[str, jax.Array]


def setting(process: Process, objective_state: Any = (), null: Any = None) -> Setting:
    """A setting in which label 5 stands for none."""
    return Setting(process, {"label": jnp.int32(5)} if null is None else null, jnp.int32(0), objective_state)


def evaluate(
    trained: Pair, key: jax.Array, model_fn: ModelFn, x0: Any, *, objective_state: Any = (), condition: Any = None
) -> Evaluation:
    """The losses of a network for one draw; labels are 0 to 4 in turn unless a condition is given."""
    x0, given = jnp.asarray(x0), setting(trained.process, objective_state)
    condition = {"label": jnp.arange(len(x0), dtype=jnp.int32) % 5} if condition is None else condition
    drawn = trained.objective.draw(key, given, x0, condition)
    return Evaluation(drawn, *trained.objective.losses(Models(model_fn), given, drawn))
