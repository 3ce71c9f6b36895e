"""Denoisers: what solvers ask. One wraps a process and a network; the others wrap a denoiser and change what it says.

    init(x)              -> memory, a pytree; () where none is needed
    (x, t, y, memory)    -> Prediction, memory        x (B, H, W, C), t scalar or (B,) in the process's own time

Wrappers work on images; guidance that is linear in the network's answer works on the ModelFn (`samplers.guidance`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from archirf_jax.processes.base import ModelFn, Prediction, Process, expand

NOISIEST = 1e3  # sigma / alpha that stands for pure noise where its limit is wanted
# x (B, H, W, C), network time (B,), y -> log p(y | x_t) (B,).
LogProbability = Callable[[jax.Array, jax.Array, Any], jax.Array]


class Denoiser(Protocol):
    """The contract of the module docstring."""

    @property
    def process(self) -> Process:
        """What the images went through."""

    def init(self, x: jax.Array) -> Any:
        """The memory before the first evaluation."""

    def __call__(self, x: jax.Array, t: jax.Array, y: Any, memory: Any) -> tuple[Prediction, Any]:
        """What is known of x at time t under conditions y, and the memory for the next evaluation."""


@dataclasses.dataclass(frozen=True)
class Network:
    """A process and a network, guided or not."""

    process: Process
    model_fn: ModelFn

    def init(self, x: jax.Array) -> Any:
        """No memory."""
        return ()

    def __call__(self, x: jax.Array, t: jax.Array, y: Any, memory: Any) -> tuple[Prediction, Any]:
        """The network's prediction."""
        return self.process.predict(self.model_fn, x, jnp.broadcast_to(t, x.shape[:1]), y), memory


@dataclasses.dataclass(frozen=True)
class Wrapper:
    """A denoiser that changes what another says.

    Attributes:
        inner: the other.
    """

    inner: Denoiser

    @property
    def process(self) -> Process:
        """The inner one's."""
        return self.inner.process

    def init(self, x: jax.Array) -> Any:
        """The inner one's."""
        return self.inner.init(x)

    def __call__(self, x: jax.Array, t: jax.Array, y: Any, memory: Any) -> tuple[Prediction, Any]:
        """The inner prediction, changed."""
        prediction, memory = self.inner(x, t, y, memory)
        return self.change(prediction, x, jnp.broadcast_to(t, x.shape[:1]), y), memory

    def change(self, prediction: Prediction, x: jax.Array, t: jax.Array, y: Any) -> Prediction:
        """The prediction about x at times t (B,), changed."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class StaticClip(Wrapper):
    """The image cut to [-limit, limit] (Ho et al. 2020).

    Attributes:
        limit: above 0.
        keep_eps: leave the noise as predicted instead of moving it with the image.
    """

    limit: float = 1.0
    keep_eps: bool = False

    def change(self, prediction: Prediction, x: jax.Array, t: jax.Array, y: Any) -> Prediction:
        """Image cut, noise moved."""
        x0 = jnp.clip(prediction.x0, -self.limit, self.limit)
        return prediction._replace(x0=x0) if self.keep_eps else with_x0(self.process, prediction, x0, x, t)


@dataclasses.dataclass(frozen=True)
class DynamicThreshold(Wrapper):
    """The image cut at its own `quantile`, where that is beyond 1, and scaled back to [-1, 1].

    Saharia et al. 2022 (Imagen), Sec. 2.3.

    Attributes:
        quantile: of the absolute values of an image, in (0, 1].
        largest: threshold that is never passed, 1 or more.
        keep_eps: leave the noise as predicted instead of moving it with the image.
    """

    quantile: float = 0.995
    largest: float = float("inf")
    keep_eps: bool = False

    def change(self, prediction: Prediction, x: jax.Array, t: jax.Array, y: Any) -> Prediction:
        """Image cut and scaled, noise moved."""
        size = jnp.quantile(jnp.abs(prediction.x0), self.quantile, axis=(1, 2, 3))
        s = expand(jnp.clip(size, 1, self.largest), x)
        x0 = jnp.clip(prediction.x0, -s, s) / s
        return prediction._replace(x0=x0) if self.keep_eps else with_x0(self.process, prediction, x0, x, t)


@dataclasses.dataclass(frozen=True)
class ClassifierGuidance(Wrapper):
    """The score moved by that of a noisy classifier: eps - sigma scale grad log p(y | x_t).

    Dhariwal & Nichol 2021, Algorithm 2. The ancestral solver has their Algorithm 1. The image moves by sigma^2 / alpha
    of the gradient, which vanishes with alpha: at pure noise the classifier is asked at sigma / alpha = `NOISIEST`.

    Attributes:
        log_p: the classifier.
        scale: 0 is off.
    """

    log_p: LogProbability
    scale: float = 1.0

    def change(self, prediction: Prediction, x: jax.Array, t: jax.Array, y: Any) -> Prediction:
        """Noise and image moved."""
        nearly = self.process.time_of_ratio(jnp.asarray(NOISIEST, x.dtype))
        asked = jnp.where(self.process.alpha(t) > 0, t, nearly.astype(t.dtype))
        alpha, sigma = expand(self.process.alpha(asked), x), expand(self.process.sigma(asked), x)
        moved = self.scale * sigma**2 / alpha * classifier_gradient(self.process, self.log_p, x, asked, y)
        return with_x0(self.process, prediction, prediction.x0 + moved, x, t)


@dataclasses.dataclass(frozen=True)
class Inpaint(Wrapper):
    """Known pixels hold: the image is known outside the mask, so its noise follows from x there.

    Attributes:
        known: (H, W, C) or (B, H, W, C) image in [-1, 1].
        mask: (H, W, 1) or like `known`; 1 where pixels are to be made, 0 where they are known.
    """

    known: jax.Array
    mask: jax.Array

    def change(self, prediction: Prediction, x: jax.Array, t: jax.Array, y: Any) -> Prediction:
        """The known pixels in place of predicted ones."""
        x0 = jnp.where(self.mask > 0.5, prediction.x0, self.known)
        return with_x0(self.process, prediction, x0, x, t)


@dataclasses.dataclass(frozen=True)
class AdaptiveProjectedGuidance:
    """Guidance without the part that only raises contrast.

    Sadat et al. 2024, "Eliminating Oversaturation and Artifacts of High Guidance Scales", Algorithm 1.
    The difference of the conditional and unconditional image is averaged over evaluations, cut to a length, and split
    into the parts along the conditional image and across it.

    Attributes:
        process: what the images went through.
        model_fn: the network.
        null: the unconditional twin of y, without batch axis.
        scale: 1 is off.
        parallel: weight of the part along the image (eta in the paper); 1 keeps it whole.
        longest: length to which the difference is cut (r in the paper); 0 = never.
        momentum: weight of the earlier differences (beta in the paper); below 0 they push back.
    """

    process: Process
    model_fn: ModelFn
    null: Any
    scale: float
    parallel: float = 0.0
    longest: float = 0.0
    momentum: float = 0.0

    def init(self, x: jax.Array) -> Any:
        """The running difference, if there is momentum."""
        return jnp.zeros_like(x) if self.momentum else ()

    def __call__(self, x: jax.Array, t: jax.Array, y: Any, memory: Any) -> tuple[Prediction, Any]:
        """The guided prediction; one pass of a doubled batch."""
        t = jnp.broadcast_to(t, x.shape[:1])
        both = self.process.predict(
            self.model_fn, jnp.concatenate([x, x]), jnp.concatenate([t, t]), beside(y, self.null)
        )
        conditional, unconditional = jax.tree.map(lambda a: a[: len(x)], both), jnp.split(both.x0, 2)[1]
        update = conditional.x0 - unconditional
        if self.momentum:
            memory = update = update + self.momentum * memory
        if self.longest:
            update = update * jnp.minimum(1, self.longest / jnp.maximum(_length(update), 1e-12))
        direction = conditional.x0 / jnp.maximum(_length(conditional.x0), 1e-12)
        along = jnp.sum(update * direction, axis=(1, 2, 3), keepdims=True) * direction
        x0 = conditional.x0 + (self.scale - 1) * (update - along + self.parallel * along)
        return with_x0(self.process, conditional, x0, x, t), memory


def with_x0(process: Process, prediction: Prediction, x0: jax.Array, x: jax.Array, t: jax.Array) -> Prediction:
    """The prediction with another image, and the noise that then explains x; where x has none, the noise stays."""
    alpha, sigma = expand(process.alpha(t), x), expand(process.sigma(t), x)
    eps = jnp.where(sigma > 0, (x - alpha * x0) / jnp.where(sigma > 0, sigma, 1), prediction.eps)
    return prediction._replace(x0=x0, eps=eps)


def classifier_gradient(process: Process, log_p: LogProbability, x: jax.Array, t: jax.Array, y: Any) -> jax.Array:
    """The gradient of log p(y | x_t) by x (B, H, W, C)."""
    return jax.grad(lambda x: jnp.sum(log_p(x, process.network_time(t), y)))(x)


def beside(y: Any, null: Any) -> Any:
    """y and, in the second half of the batch, its null twin."""
    return jax.tree.map(lambda a, b: jnp.concatenate([a, jnp.broadcast_to(b, a.shape).astype(a.dtype)]), y, null)


def _length(images: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.sum(jnp.square(images), axis=(1, 2, 3), keepdims=True))
