"""What kinds of guidance share: when it acts, the doubled batch, and extrapolation from a weaker prediction.

A process interprets a network's answer as an affine function of it (`Process.interpret`). An extrapolation, whose
weights add up to 1, of (x0, eps) is therefore the interpretation of the same extrapolation of the answers.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from archirf_jax.contracts import Condition, Denoiser, Prediction
from archirf_jax.errors import UserError
from archirf_jax.processes.base import Process, expand
from archirf_jax.samplers.ranges import check_range

Interval = tuple[float, float]  # process times, both included
ROUNDING = 1e-6  # relative, of times in float32


def is_inside(t: jax.Array, interval: Interval | None) -> jax.Array:
    """Where times t lie in the interval. An end at 0 or 1 is open: samplers may visit times beyond."""
    first, last = interval or (0.0, 1.0)
    after = t >= first * (1 - ROUNDING) if first > 0 else jnp.ones_like(t, bool)
    before = t <= last * (1 + ROUNDING) if last < 1 else jnp.ones_like(t, bool)
    return after & before


def with_null(condition: Condition, null: Condition) -> Condition:
    """The condition, followed by its unconditional counterpart: a batch of 2 B.

    Args:
        condition: its leaves have leading axis B.
        null: for some of its keys, without batch axis or with one of B; other keys are the same in both halves.

    Raises:
        UserError: the null condition has none of the condition's keys, or other shapes.
    """
    if not set(condition) & set(null):
        raise UserError(
            "sample.guidance.scale",
            message=f"guidance needs a null condition for one of {sorted(condition)}, and has {sorted(null)}; use 1",
        )

    def other(key: str, value: jax.Array) -> jax.Array:
        if key not in null:
            return value
        empty = jnp.asarray(null[key])
        if empty.shape not in (value.shape, value.shape[1:]):
            raise UserError(f"null.{key}", empty.shape, f"must be {value.shape[1:]}, with a batch axis {value.shape}")
        return jnp.broadcast_to(empty, value.shape).astype(value.dtype)

    return {key: jnp.concatenate([value, other(key, value)]) for key, value in condition.items()}


def ask_both(
    inner: Denoiser, null: Condition, x: jax.Array, t: jax.Array, condition: Condition, state: Any, s: jax.Array | None
) -> tuple[Prediction, Prediction, Any]:
    """(conditional, unconditional, state) predictions by one pass of a doubled batch."""

    def twice(times: jax.Array) -> jax.Array:
        return jnp.concatenate([times, times]) if jnp.ndim(times) else times

    prediction, state = inner(
        jnp.concatenate([x, x]), twice(t), with_null(condition, null), state, s=None if s is None else twice(s)
    )
    conditional, unconditional = (
        jax.tree.map(lambda leaf, rows=rows: leaf[rows], prediction)
        for rows in (slice(None, len(x)), slice(len(x), None))
    )
    return conditional, unconditional, state


def rescaled(
    process: Process, guided: Prediction, conditional: Prediction, x: jax.Array, t: jax.Array, share: float
) -> Prediction:
    """The guided prediction with the standard deviation of its answer moved towards that of the conditional one.

    Lin et al. 2023, "Common Diffusion Noise Schedules and Sample Steps are Flawed", Eq. 15 and 16. The deviations are
    those of what the network predicts (eps, v, velocity, ...), which `Process.target` recovers.

    Args:
        process: what x went through.
        guided, conditional: predictions for x.
        x: (B, ...).
        t: (B,).
        share: 0 (as guided) to 1 (the deviation of the conditional answer).
    """
    axes = tuple(range(1, x.ndim))
    answer, reference = (process.target(p.x0, p.eps, t) for p in (guided, conditional))
    before, after = (jnp.std(a, axes, keepdims=True) for a in (reference, answer))
    answer = answer * (share * jnp.where(after > 0, before / jnp.where(after > 0, after, 1), 1) + 1 - share)
    channels = x.shape[-1]
    padding = [(0, 0)] * (x.ndim - 1) + [(0, process.output_channels(channels) - channels)]
    return process.interpret(jnp.pad(answer, padding), x, t)._replace(variance=conditional.variance)


class Extrapolation:
    """weaker + scale (conditional - weaker), for frozen dataclasses that say by `pair` what the two are.

    The variance is the conditional prediction's. Scale 1 is off: the inner denoiser's prediction, bit for bit
    and at its cost. For a scalar time outside the interval a step costs the inner denoiser's pass alone.

    Attributes:
        inner: the denoiser that is guided.
        scale: 0 or more.
        interval: process times within which guidance acts (Kynkäänniemi et al. 2024); None = always.
        rescale: 0 to 1, see `rescaled`.
    """

    inner: Denoiser
    scale: float
    interval: Interval | None
    rescale: float

    def __post_init__(self) -> None:
        check_range("sample.guidance.scale", self.scale, 0)
        check_range("sample.guidance.rescale", self.rescale, 0, 1)
        if self.interval is not None:
            check_interval(self.interval)

    @property
    def process(self) -> Process:
        """The inner denoiser's process."""
        process: Process = self.inner.process
        return process

    def init(self, x: jax.Array) -> Any:
        """The state of `pair`, or the inner denoiser's where guidance is off.

        Raises:
            UserError: there is an interval, outside of which the state could not be kept.
        """
        if self.scale == 1:
            return self.inner.init(x)
        state = self.init_pair(x)
        if self.interval is not None and jax.tree.leaves(state):
            raise UserError("sample.guidance.interval", self.interval, "needs an inner denoiser without state")
        return state

    def __call__(
        self, x: jax.Array, t: jax.Array, condition: Condition, state: Any, *, s: jax.Array | None = None
    ) -> tuple[Prediction, Any]:
        """The guided prediction; see `contracts.Denoiser`."""
        if self.scale == 1:
            return self.inner(x, t, condition, state, s=s)
        if self.interval is None:
            return self._guided(x, t, condition, state, s, None)
        on = is_inside(jnp.asarray(t), self.interval)
        # Neither state has leaves, see `init`.
        return jax.lax.cond(
            jnp.any(on),
            lambda: self._guided(x, t, condition, state, s, on),
            lambda: (self.inner(x, t, condition, self.inner.init(x), s=s)[0], state),
        )

    def init_pair(self, x: jax.Array) -> Any:
        """The state of `pair`."""
        raise NotImplementedError

    def pair(
        self, x: jax.Array, t: jax.Array, condition: Condition, state: Any, s: jax.Array | None
    ) -> tuple[Prediction, Prediction, Any]:
        """(conditional, weaker, state) predictions for x (B, ...)."""
        raise NotImplementedError

    def _guided(
        self, x: jax.Array, t: jax.Array, condition: Condition, state: Any, s: jax.Array | None, on: jax.Array | None
    ) -> tuple[Prediction, Any]:
        conditional, weaker, state = self.pair(x, t, condition, state, s)
        x0, eps = (w + self.scale * (c - w) for c, w in zip(conditional[:2], weaker[:2], strict=True))
        guided = conditional._replace(x0=x0, eps=eps)
        if self.rescale:
            guided = rescaled(self.process, guided, conditional, x, jnp.broadcast_to(t, x.shape[:1]), self.rescale)
        if on is not None:
            guided = jax.tree.map(lambda a, b: jnp.where(expand(on, x), a, b), guided, conditional)
        return guided, state


def check_interval(interval: Any) -> None:
    """Raise a UserError unless these are two times with 0 <= first <= second <= 1."""
    pair = interval if isinstance(interval, tuple | list) else ()
    if len(pair) != 2 or not all(isinstance(time, int | float) for time in pair) or not 0 <= pair[0] <= pair[1] <= 1:
        raise UserError("sample.guidance.interval", interval, "must be two times with 0 <= first <= second <= 1")
