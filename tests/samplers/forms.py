"""Closed forms of mixtures in one dimension, in numpy and apart from the package, and a walk along a solver's steps.

In one dimension the probability-flow ODE keeps the order of the images, so an image keeps its quantile: it goes from x
at one time to F_later^-1(F_earlier(x)) at another, where F is the distribution function of alpha x0 + sigma eps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from archirf_jax.contracts import Condition, Denoiser, ModelFn, Prediction
from archirf_jax.processes.base import Process
from archirf_jax.processes.oracles import Mixture, network
from archirf_jax.samplers.grids import pairs
from archirf_jax.samplers.solvers.edm import Edm
from archirf_jax.samplers.solvers.heun import Heun

FAR = 10.0  # no image is further from 0
HALVINGS = 60
# Noise of a step: (number of the step, shape) -> array.
Noise = Callable[[int, tuple[int, ...]], np.ndarray]


class Data(NamedTuple):
    """A mixture of two normal distributions; as a dict it is the network's condition, and each image may have its own.

    Attributes:
        means: (2,) or (B, 2, H, W, C).
        stds: (2,) or (B, 2).
        weights: (2,) or (B, 2).
    """

    means: Any
    stds: Any
    weights: Any


# The mean of each is 0, so that what a process leaves of it in its noisiest images hardly matters.
MIXTURE = Data(np.asarray([-0.7, 0.5]), np.asarray([0.2, 0.3]), np.asarray([5, 7]) / 12)
TWO_POINTS = Data(np.asarray([-0.6, 0.8]), np.zeros(2), np.asarray([4, 3]) / 7)
GAUSSIAN = Data(np.asarray([0.3, 0.3]), np.asarray([0.5, 0.5]), np.asarray([0.5, 0.5]))
POINT = Data(np.asarray([0.7, 0.7]), np.zeros(2), np.asarray([0.5, 0.5]))


def images(data: Data, count: int) -> Data:
    """The same mixture for each of `count` images of one pixel."""
    return Data(
        np.broadcast_to(data.means.reshape(1, 2, 1, 1, 1), (count, 2, 1, 1, 1)),
        np.broadcast_to(data.stds, (count, 2)),
        np.broadcast_to(data.weights, (count, 2)),
    )


def normal(means: np.ndarray, std: float) -> Data:
    """N(mean, std^2) for each mean (..., H, W, C)."""
    both = np.stack([means, means], axis=-4)
    return Data(both, np.full(both.shape[:-3], std), np.full(both.shape[:-3], 0.5))


def conditional(process: Process) -> ModelFn:
    """The perfect network for images from the `Data` of the condition."""
    return lambda x, t, condition, *, s=None: network(process, Mixture(**condition))(x, t, {})


def log_posterior(process: Process) -> Callable[[jax.Array, jax.Array, Condition], jax.Array]:
    """The perfect classifier: log-probability that x came from the first component of the condition's `Data`."""

    def log_p(x: jax.Array, t: jax.Array, condition: Condition) -> jax.Array:
        return Mixture(**condition).log_posterior(x, process.alpha(t), process.sigma(t))[:, 0]

    return log_p


def noised(data: Data, process: Process, t: float) -> Data:
    """The mixture that one pixel is at time t."""
    alpha, sigma = float(process.alpha(np.asarray(t))), float(process.sigma(np.asarray(t)))
    return Data(alpha * data.means, np.hypot(alpha * data.stds, sigma), data.weights)


def distribution(x: np.ndarray, data: Data) -> np.ndarray:
    """The probability of values up to x."""
    spread = np.maximum(data.stds, 1e-12)
    return sum(w * scipy.special.ndtr((x - m) / s) for m, s, w in zip(data.means, spread, data.weights, strict=True))


def quantile(p: np.ndarray, data: Data) -> np.ndarray:
    """The inverse of `distribution`, by bisection."""
    far = FAR * max(1.0, float(np.max(data.stds)))
    low, high = np.full(p.shape, -far), np.full(p.shape, far)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        below = distribution(middle, data) < p
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return (low + high) / 2


def log_density(x: np.ndarray, data: Data) -> np.ndarray:
    """Of one pixel."""
    terms = [
        np.log(w) - 0.5 * ((x - m) / s) ** 2 - np.log(s * np.sqrt(2 * np.pi))
        for m, s, w in zip(data.means, data.stds, data.weights, strict=True)
    ]
    return scipy.special.logsumexp(terms, axis=0)


def transported(x: np.ndarray, data: Data, process: Process, first: float, last: float) -> np.ndarray:
    """Where the probability-flow ODE takes pixels x from time `first` to `last`."""
    return quantile(distribution(x, noised(data, process, first)), noised(data, process, last))


def model_log_density(x: np.ndarray, data: Data, process: Process, first: float, last: float) -> np.ndarray:
    """What the ODE makes at time `last` of normal noise, which at `first` only nearly is the noised data."""
    start = transported(x, data, process, last, first)
    noise = Data(np.zeros(1), np.asarray([float(process.sigma(np.asarray(first)))]), np.ones(1))
    change = log_density(start, noise) - log_density(start, noised(data, process, first))
    return log_density(x, noised(data, process, last)) + change


def even(process: Process, steps: int, first: float) -> np.ndarray:
    """(N, 2) steps from time `first` to the data, even in flow time."""
    tau = np.linspace(float(process.flow_time(np.asarray(first))), 0.0, steps + 1)[1:-1]
    return pairs(np.concatenate([[first], process.time_of_ratio(tau / (1 - tau)), [0.0]]))


def even_in_log(process: Process, steps: int, high: float, low: float) -> np.ndarray:
    """(N, 2) steps from one sigma / alpha to another, even in its logarithm."""
    return pairs(process.time_of_ratio(np.geomspace(high, low, steps + 1)))


@dataclasses.dataclass(frozen=True)
class OnHost(Process):
    """A process whose times are numbers on the host, as they are where a solver is not compiled.

    Attributes:
        inner: the process.
    """

    inner: Process = Process()

    def alpha(self, t: Any) -> Any:
        """The inner one's."""
        return self.inner.alpha(np.asarray(t))

    def sigma(self, t: Any) -> Any:
        """The inner one's."""
        return self.inner.sigma(np.asarray(t))

    def time_of_ratio(self, ratio: Any) -> Any:
        """The inner one's."""
        return self.inner.time_of_ratio(np.asarray(ratio))

    def step_variance(self, prediction: Prediction, small: jax.Array, large: jax.Array) -> jax.Array:
        """The inner one's."""
        return self.inner.step_variance(prediction, small, large)

    def check_start(self, t: float) -> None:
        """The inner one's."""
        self.inner.check_start(t)


@dataclasses.dataclass
class Compiled:
    """A denoiser, compiled for each shape it meets, to be asked by a solver that is not.

    Attributes:
        inner: the denoiser.
    """

    inner: Denoiser

    def __post_init__(self) -> None:
        """Nothing is compiled yet."""
        self.process = OnHost(inner=self.inner.process)
        # Well, whatever the tests' flags say: it is small, and asked thousands of times.
        how = {"xla_backend_optimization_level": "3"} if jax.default_backend() == "cpu" else {}
        self._call = jax.jit(lambda x, t, condition, state: self.inner(x, t, condition, state), compiler_options=how)

    def init(self, x: jax.Array) -> Any:
        """The inner one's."""
        return self.inner.init(jnp.asarray(x))

    def __call__(self, x: Any, t: Any, condition: Condition, state: Any, *, s: Any = None) -> tuple[Prediction, Any]:
        """The inner prediction; no network here depends on s."""
        with jax.disable_jit(False):
            return jax.tree.map(np.asarray, self._call(x, t, condition, state))


def walk(solver: Any, denoise: Any, grid: np.ndarray, x: np.ndarray, data: Data, noise: Noise) -> np.ndarray:
    """x after the steps of the grid: `samplers.sample` without its compiled loop, which would be compiled anew for each
    number of steps. Where a solver has branches they are taken in Python, as a branch too would be compiled each time.
    """
    denoise.process.check_start(float(grid[0, 0]))
    with jax.disable_jit(isinstance(solver, Heun | Edm)):
        state = solver.init(denoise, grid, x)
        for i, (t, t_next) in enumerate(grid):
            x, state = solver.step(noise(i, x.shape), denoise, x, t, t_next, data._asdict(), state)
    return np.asarray(x)


def no_noise(i: int, shape: tuple[int, ...]) -> np.ndarray:
    """Zeros."""
    return np.zeros(shape)
