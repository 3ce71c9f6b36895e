"""Processes of every kind, and networks that know the data or answer nothing."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archirf_jax.contracts import Condition, Extras, ModelFn, Prediction
from archirf_jax.processes.base import Process, ask, expand
from archirf_jax.processes.ddpm import DDPM
from archirf_jax.processes.edm import EDM
from archirf_jax.processes.interpolants import PATHS
from archirf_jax.processes.oracles import process_time
from archirf_jax.processes.rectified_flow import PREDICTIONS as FLOW_PREDICTIONS
from archirf_jax.processes.rectified_flow import RectifiedFlow

# One process for each way that alpha and sigma run.
CLOCKS: dict[str, Process] = {
    **{path: RectifiedFlow(path=path) for path in PATHS},
    **{schedule: DDPM(schedule=schedule) for schedule in ("linear", "scaled_linear", "cosine")},
    "zero_snr": DDPM(prediction="v", zero_terminal_snr=True),
    "ddpm_37": DDPM(steps=37, beta_end=0.3),
    "edm": EDM(),
    "edm_10": EDM(sigma_max=10.0, time_scale=250.0),
}
# One process for each quantity that a network may predict.
LEARNERS: dict[str, Process] = {
    **{
        f"{path}-{prediction}": RectifiedFlow(path=path, prediction=prediction)
        for path in PATHS
        for prediction in FLOW_PREDICTIONS
    },
    "linear-raw_time": RectifiedFlow(time_scale=1.0),
    **{f"{path}-towards_data": RectifiedFlow(path=path, time_scale=1.0, towards="data") for path in PATHS},
    "linear-x0-towards_data": RectifiedFlow(prediction="x0", towards="data"),
    **{f"ddpm-{prediction}": DDPM(prediction=prediction) for prediction in ("eps", "x0", "v")},
    **{
        f"ddpm-{prediction}-zero_snr": DDPM(prediction=prediction, zero_terminal_snr=True) for prediction in ("x0", "v")
    },
    "ddpm-cosine": DDPM(schedule="cosine"),
    "ddpm-respaced": DDPM(respacing="10,5"),
    "edm": EDM(),
    "edm-scaled_time": EDM(time_scale=250.0),
}
every_clock = pytest.mark.parametrize("process", CLOCKS.values(), ids=CLOCKS.keys())
every_learner = pytest.mark.parametrize("process", LEARNERS.values(), ids=LEARNERS.keys())


class Spy:
    """A network that answers 0, sows an uncertainty of 0 and remembers what it was given."""

    def __init__(self, process: Process) -> None:
        self.process = process

    def __call__(
        self, x: jax.Array, t: jax.Array, condition: Condition, *, s: jax.Array | None = None
    ) -> tuple[jax.Array, Extras]:
        self.x, self.t, self.condition, self.s = x, t, condition, s
        answer = jnp.zeros((*x.shape[:-1], self.process.output_channels(x.shape[-1])))
        return answer, {"log_variance": jnp.zeros(len(x))}


def answers(output: Any) -> ModelFn:
    """The network that answers this, whatever it is asked."""
    return lambda x, t, condition, *, s=None: (jnp.asarray(output), {})


def knows(process: Process, x0: Any, error: Any = 0.0) -> ModelFn:
    """The network that knows x0 and reads eps off its input; it answers the target + error, further channels 0."""

    def oracle(
        x: jax.Array, t: jax.Array, condition: Condition, *, s: jax.Array | None = None
    ) -> tuple[jax.Array, Extras]:
        t = process_time(process, t)
        x = x / process.network_input(jnp.ones_like(x), t)
        eps = (x - expand(process.alpha(t), x) * x0) / expand(process.sigma(t), x)
        more = process.output_channels(x.shape[-1]) - x.shape[-1]
        answer = jnp.concatenate([process.target(x0, eps, t) + error, jnp.zeros((*x.shape[:-1], more))], axis=-1)
        return answer, {"log_variance": jnp.zeros(len(x))}

    return oracle


def predict(process: Process, model_fn: ModelFn, x: Any, t: Any, condition: Condition | None = None) -> Prediction:
    """What the network's answer to x at process times t means."""
    return process.interpret(ask(process, model_fn, x, t, condition or {})[0], x, t)


def images(count: int, channels: int = 2) -> Any:
    """(count, 2, 3, channels) float64 in [-1, 1]."""
    return np.random.default_rng(0).uniform(-1, 1, (count, 2, 3, channels))


def within_error(draws: Any, expected: float) -> bool:
    """Whether the mean of independent draws lies within 4 of its own standard errors of what is expected."""
    draws = np.asarray(draws, np.float64).ravel()
    return bool(abs(draws.mean() - expected) <= 4 * draws.std() / np.sqrt(draws.size) + 1e-12)


def bayes(process: DDPM) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """q(x_s | x_t, x0) of the visited steps as a product of normal densities of x_s.

    Of x_t given x_s, and of x_s given x0: factors of x0 and x_t in the mean, the variance, and that of the first.
    """
    abar = np.cumprod(1 - process.betas)[process.visited]
    before = np.append(1.0, abar[:-1])
    kept = np.sqrt(abar / before)
    beta = 1 - abar / before
    with np.errstate(divide="ignore"):
        precision = kept**2 / beta + 1 / (1 - before)
        from_x0 = np.where(before == 1, 1, np.sqrt(before) / np.maximum(1 - before, 1e-300) / precision)
    return from_x0, kept / beta / precision, 1 / precision, beta
