"""Denoisers: what solvers ask (`contracts.Denoiser`). One wraps a process and a network, the others wrap a denoiser.

Times are those of the process, () or (B,). Guidance is in `samplers.guidance`. x may have any rank.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from archirf_jax.contracts import Condition, Denoiser, ModelFn, Prediction
from archirf_jax.processes.base import Process, ask, expand

NOISIEST = 1e3  # sigma / alpha that stands for pure noise where its limit is wanted
# x (B, ...), process time (B,), condition -> log p(condition | x_t) (B,).
LogProbability = Callable[[jax.Array, jax.Array, Condition], jax.Array]


@dataclasses.dataclass(frozen=True)
class NetworkDenoiser:
    """The prediction of a network.

    Attributes:
        process: what x went through.
        model_fn: the network with its parameters.
    """

    process: Process
    model_fn: ModelFn

    def init(self, x: jax.Array) -> Any:
        """(): it keeps no state."""
        return ()

    def __call__(
        self, x: jax.Array, t: jax.Array, condition: Condition, state: Any, *, s: jax.Array | None = None
    ) -> tuple[Prediction, Any]:
        """The network's prediction; see `contracts.Denoiser`."""
        t = jnp.broadcast_to(t, x.shape[:1])
        s = None if s is None else jnp.broadcast_to(s, x.shape[:1])
        output, _ = ask(self.process, self.model_fn, x, t, condition, s=s)
        return self.process.interpret(output, x, t), state


@dataclasses.dataclass(frozen=True)
class DenoiserWrapper:
    """A denoiser that transforms the predictions of another.

    Attributes:
        inner: the other denoiser.
    """

    inner: Denoiser

    @property
    def process(self) -> Process:
        """The inner denoiser's process."""
        process: Process = self.inner.process
        return process

    def init(self, x: jax.Array) -> Any:
        """The inner denoiser's state."""
        return self.inner.init(x)

    def __call__(
        self, x: jax.Array, t: jax.Array, condition: Condition, state: Any, *, s: jax.Array | None = None
    ) -> tuple[Prediction, Any]:
        """The transformed prediction; see `contracts.Denoiser`."""
        prediction, state = self.inner(x, t, condition, state, s=s)
        return self.transform(prediction, x, jnp.broadcast_to(t, x.shape[:1]), condition), state

    def transform(self, prediction: Prediction, x: jax.Array, t: jax.Array, condition: Condition) -> Prediction:
        """The prediction that replaces the inner one for x (B, ...) at times t (B,)."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class StaticClip(DenoiserWrapper):
    """x0 is clipped to [-limit, limit] (Ho et al. 2020).

    Attributes:
        limit: above 0.
        keep_eps: leave eps as predicted, instead of the noise that explains x with the clipped x0.
    """

    limit: float = 1.0
    keep_eps: bool = False

    def transform(self, prediction: Prediction, x: jax.Array, t: jax.Array, condition: Condition) -> Prediction:
        """x0 clipped, eps moved with it."""
        x0 = jnp.clip(prediction.x0, -self.limit, self.limit)
        return prediction._replace(x0=x0) if self.keep_eps else with_x0(self.process, prediction, x0, x, t)


@dataclasses.dataclass(frozen=True)
class DynamicThreshold(DenoiserWrapper):
    """x0 is clipped at a quantile of its own absolute values where that is above 1, and divided by it.

    Saharia et al. 2022 (Imagen), Sec. 2.3.

    Attributes:
        quantile: of the absolute values of an example, in (0, 1].
        largest: upper bound of the threshold, 1 or more.
        keep_eps: leave eps as predicted, instead of the noise that explains x with the new x0.
    """

    quantile: float = 0.995
    largest: float = float("inf")
    keep_eps: bool = False

    def transform(self, prediction: Prediction, x: jax.Array, t: jax.Array, condition: Condition) -> Prediction:
        """x0 clipped and divided, eps moved with it."""
        size = jnp.quantile(jnp.abs(prediction.x0), self.quantile, axis=tuple(range(1, x.ndim)))
        s = expand(jnp.clip(size, 1, self.largest), x)
        x0 = jnp.clip(prediction.x0, -s, s) / s
        return prediction._replace(x0=x0) if self.keep_eps else with_x0(self.process, prediction, x0, x, t)


@dataclasses.dataclass(frozen=True)
class ClassifierGuidance(DenoiserWrapper):
    """The score is moved by that of a noisy classifier: eps - sigma scale grad log p(condition | x_t).

    Dhariwal & Nichol 2021, Algorithm 2; the ancestral solver has their Algorithm 1. x0 moves by sigma^2 / alpha times
    the gradient, which vanishes with alpha: at pure noise the classifier is asked at sigma / alpha = `NOISIEST`.

    Attributes:
        log_p: the classifier.
        scale: 0 is off.
    """

    log_p: LogProbability
    scale: float = 1.0

    def transform(self, prediction: Prediction, x: jax.Array, t: jax.Array, condition: Condition) -> Prediction:
        """x0 and eps moved."""
        nearly = self.process.time_of_ratio(jnp.asarray(NOISIEST, x.dtype))
        asked = jnp.where(self.process.alpha(t) > 0, t, nearly.astype(t.dtype))
        alpha, sigma = expand(self.process.alpha(asked), x), expand(self.process.sigma(asked), x)
        moved = self.scale * sigma**2 / alpha * classifier_gradient(self.log_p, x, asked, condition)
        return with_x0(self.process, prediction, prediction.x0 + moved, x, t)


@dataclasses.dataclass(frozen=True)
class Inpaint(DenoiserWrapper):
    """Known pixels are held: x0 is known outside the mask, so the noise there follows from x.

    Attributes:
        known: (...) or (B, ...) data, like x.
        mask: broadcasts against `known`; 1 where pixels are generated, 0 where they are known.
    """

    known: jax.Array
    mask: jax.Array

    def transform(self, prediction: Prediction, x: jax.Array, t: jax.Array, condition: Condition) -> Prediction:
        """The known pixels in place of the predicted ones."""
        x0 = jnp.where(self.mask > 0.5, prediction.x0, self.known)
        return with_x0(self.process, prediction, x0, x, t)


def with_x0(process: Process, prediction: Prediction, x0: jax.Array, x: jax.Array, t: jax.Array) -> Prediction:
    """The prediction with another x0 and the eps that then explains x; where x has no noise, eps stays."""
    alpha, sigma = expand(process.alpha(t), x), expand(process.sigma(t), x)
    eps = jnp.where(sigma > 0, (x - alpha * x0) / jnp.where(sigma > 0, sigma, 1), prediction.eps)
    return prediction._replace(x0=x0, eps=eps)


def classifier_gradient(log_p: LogProbability, x: jax.Array, t: jax.Array, condition: Condition) -> jax.Array:
    """The gradient of log p(condition | x_t) by x (B, ...) at times t (B,)."""
    return jax.grad(lambda x: jnp.sum(log_p(x, t, condition)))(x)
