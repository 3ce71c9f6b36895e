"""Processes of every kind, and networks that know all or say nothing."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archirf_jax.processes.base import ModelFn, Process, expand
from archirf_jax.processes.ddpm import DDPM
from archirf_jax.processes.edm import EDM
from archirf_jax.processes.rectified_flow import PATHS, RectifiedFlow
from archirf_jax.processes.rectified_flow import PREDICTIONS as FLOW_PREDICTIONS

# One process for each way that alpha and sigma run.
CLOCKS: dict[str, Process] = {
    **{path: RectifiedFlow(path=path) for path in PATHS},
    **{schedule: DDPM(schedule=schedule) for schedule in ("linear", "scaled_linear", "cosine")},
    "ddpm_37": DDPM(steps=37, beta_end=0.3),
    "edm": EDM(),
    "edm_10": EDM(sigma_max=10.0, time_scale=250.0),
}
# One process for each thing that a network may learn.
LEARNERS: dict[str, Process] = {
    **{
        f"{path}-{prediction}": RectifiedFlow(path=path, prediction=prediction)
        for path in PATHS
        for prediction in FLOW_PREDICTIONS
    },
    "linear-raw_time": RectifiedFlow(time_scale=1.0, time_distribution="uniform", shift=3.0),
    **{f"ddpm-{prediction}": DDPM(prediction=prediction) for prediction in ("eps", "x0", "v")},
    "ddpm-cosine": DDPM(schedule="cosine"),
    "ddpm-respaced": DDPM(respacing="10,5", weighting="min_snr"),
    "edm": EDM(),
    "edm-uncertain": EDM(uncertainty=True, time_scale=250.0),
}
every_clock = pytest.mark.parametrize("process", CLOCKS.values(), ids=CLOCKS.keys())
every_learner = pytest.mark.parametrize("process", LEARNERS.values(), ids=LEARNERS.keys())


class Spy:
    """A network that says 0 and remembers what it was told."""

    def __init__(self, process: Process) -> None:
        self.process = process

    def __call__(self, x: jax.Array, t: jax.Array, y: Any) -> jax.Array:
        self.x, self.t, self.y = x, t, y
        return jnp.zeros((*x.shape[:-1], self.process.output_channels(x.shape[-1])))


def knows(process: Process, x0: Any, error: Any = 0.0) -> ModelFn:
    """The network that knows x0 and reads eps off its input; it answers the target + error, further channels 0."""

    def oracle(x_in: jax.Array, network_time: jax.Array, y: Any) -> jax.Array:
        t = process.time(network_time)
        x = x_in / process.network_input(jnp.ones_like(x_in), t)
        eps = (x - expand(process.alpha(t), x) * x0) / expand(process.sigma(t), x)
        more = process.output_channels(x.shape[-1]) - x.shape[-1]
        return jnp.concatenate([process.target(x0, eps, t) + error, jnp.zeros((*x.shape[:-1], more))], axis=-1)

    return oracle


def images(count: int, channels: int = 2) -> Any:
    """(count, 2, 3, channels) float64 in [-1, 1]."""
    return np.random.default_rng(0).uniform(-1, 1, (count, 2, 3, channels))


def within_error(draws: Any, expected: float) -> bool:
    """Whether the mean of independent draws lies within 4 of its own standard errors of what is expected."""
    draws = np.asarray(draws, np.float64).ravel()
    return bool(abs(draws.mean() - expected) <= 4 * draws.std() / np.sqrt(draws.size) + 1e-12)
