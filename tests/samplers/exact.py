"""Closed forms in numpy, apart from the package: what is known of two overlapping normal distributions of two pixels.

One normal distribution would not do: on it the midpoint method has an order more than it should.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.integrate
import scipy.special

from archirf_jax.contracts import ModelFn
from archirf_jax.processes.base import Process
from archirf_jax.processes.ddpm import DDPM
from archirf_jax.processes.edm import EDM
from archirf_jax.processes.oracles import Mixture, network
from archirf_jax.processes.rectified_flow import RectifiedFlow
from archirf_jax.samplers.config import SamplerConfig
from archirf_jax.samplers.denoisers import NetworkDenoiser
from archirf_jax.samplers.solvers.edm import Edm
from archirf_jax.samplers.solvers.heun import Heun

SHAPE = (1, 2, 1)
SHORT = 8
MEANS = np.asarray([[0.5, -0.2], [-0.4, 0.3]])
STDS = np.asarray([0.4, 0.6])
WEIGHTS = np.asarray([0.4, 0.6])
DATA = Mixture(MEANS.reshape(2, *SHAPE), STDS, WEIGHTS)
PROCESSES: dict[str, Process] = {
    "linear": RectifiedFlow(),
    "gvp": RectifiedFlow(path="gvp"),
    "vp": RectifiedFlow(path="vp", prediction="v"),
    "ddpm": DDPM(variance="fixed_small"),
    "edm": EDM(),
}


def answers(function: Callable[[Any, Any, Any], Any]) -> ModelFn:
    """The ModelFn of (x, t, label) -> answer."""
    return lambda x, t, condition, *, s=None: (function(x, t, condition.get("label")), {})


def perfect(process: Process, data: Mixture = DATA) -> NetworkDenoiser:
    """The perfect network's denoiser."""
    return NetworkDenoiser(process, network(process, data))


def grid(name: str, process: Process, steps: int, **fields: Any) -> np.ndarray:
    """(N, 2) steps of a named grid."""
    return SamplerConfig.from_config({"grid": {"name": name, **fields}, "steps": steps}).make_grid(process)


def denoise(x: np.ndarray, alpha: Any, sigma: Any) -> tuple[np.ndarray, np.ndarray]:
    """E[x0 | x] and E[eps | x] for x (B, 2) = alpha x0 + sigma eps."""
    distance, variance, log_joint = _log_joint(x, alpha, sigma)
    share = scipy.special.softmax(log_joint, axis=1)[..., None]
    gain = (alpha * STDS**2 / variance)[:, None]
    return (share * (MEANS + gain * distance)).sum(1), (share * (sigma / variance)[:, None] * distance).sum(1)


def log_prob(x: np.ndarray, alpha: Any, sigma: Any) -> np.ndarray:
    """(B,) log-density of x (B, 2)."""
    return scipy.special.logsumexp(_log_joint(x, alpha, sigma)[2], axis=1)


def log_posterior(x: np.ndarray, alpha: Any, sigma: Any) -> np.ndarray:
    """(B, 2) log-probabilities that x (B, 2) came from each distribution."""
    return scipy.special.log_softmax(_log_joint(x, alpha, sigma)[2], axis=1)


def flow(z: np.ndarray, first: float, last: float) -> np.ndarray:
    """Where the probability-flow ODE takes x / (alpha + sigma) (B, 2) from one flow time to another."""

    def rate(tau: float, x: np.ndarray) -> np.ndarray:
        x0, eps = denoise(x.reshape(z.shape), 1 - tau, tau)
        return (eps - x0).ravel()

    found = scipy.integrate.solve_ivp(rate, (first, last), z.ravel(), method="DOP853", rtol=1e-11, atol=1e-12)
    return found.y[:, -1].reshape(z.shape)


def even(process: Process, steps: int, first: float, last: float) -> np.ndarray:
    """(N, 2) steps of the process that are even in flow time."""
    tau = np.linspace(first, last, steps + 1)
    times = process.time_of_ratio(tau / (1 - tau))
    return np.stack([times[:-1], times[1:]], axis=1)


def scale(process: Process, t: float) -> float:
    """alpha + sigma."""
    return float(process.alpha(np.asarray(t)) + process.sigma(np.asarray(t)))


def walk(solver: Any, denoiser: Any, grid: np.ndarray, x: np.ndarray, z: np.ndarray | None = None) -> np.ndarray:
    """x (B, 2) after the steps of the grid, one by one and without the driver; z (N, B, 2) is their noise."""
    images = jnp.asarray(x.reshape(-1, *SHAPE))
    noise = np.zeros((len(grid), *images.shape)) if z is None else z.reshape(len(grid), *images.shape)
    condition = {"label": jnp.zeros(len(images), jnp.int32)}

    def step(noise: Any, x: Any, t: Any, t_next: Any, state: Any) -> Any:
        return solver.step(noise, denoiser, x, t, t_next, condition, state)

    # To compile a step takes longer than a short walk without, but where a table is read or a branch taken.
    short, table, branch = len(grid) <= SHORT, isinstance(denoiser.process, DDPM), isinstance(solver, Heun | Edm)
    step = step if short and not (table and branch) else jax.jit(step)
    state = solver.init(denoiser, grid, images)
    with jax.disable_jit(short and not table):
        for (t, t_next), fresh in zip(grid, noise, strict=True):
            images, state = step(jnp.asarray(fresh), images, jnp.asarray(t), jnp.asarray(t_next), state)
    return np.asarray(images).reshape(x.shape)


def _log_joint(x: np.ndarray, alpha: Any, sigma: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    variance = alpha**2 * STDS**2 + sigma**2
    distance = x[:, None] - alpha * MEANS
    log_density = -0.5 * np.sum(distance**2, axis=2) / variance - np.log(2 * np.pi * variance)
    return distance, variance, np.log(WEIGHTS) + log_density
