"""Distributions of training times on [0, 1]; those of flows also have their exact density.

Those of flows are of SD3 (Esser et al. 2024, "Scaling Rectified Flow Transformers", Sec. 3.1).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from archirf_jax.errors import UserError
from archirf_jax.processes.base import Process, check_choice, check_positive
from archirf_jax.processes.times import shift_time

OF_FLOWS = ("uniform", "logit_normal", "mode", "cosmap")
NAMES = (*OF_FLOWS, "log_normal", "steps")
BISECTIONS = 40  # of [0, 1]: below float32's resolution
MODE_SCALES = (-1.0, 2 / (math.pi - 2))


@dataclasses.dataclass(frozen=True)
class Uniform:
    """Every time alike."""

    def sample(self, key: jax.Array, batch: int) -> jax.Array:
        """(batch,) times above 0, where the velocity of a curved path may be infinite."""
        return 1 - jax.random.uniform(key, (batch,))

    def density(self, t: jax.Array) -> jax.Array:
        """1 at every time."""
        return jnp.ones_like(t)


@dataclasses.dataclass(frozen=True)
class LogitNormal:
    """logit(t) is normal; Eq. 19 of SD3.

    Attributes:
        mean: of the logit; above 0 means noisier.
        std: of the logit, above 0.
    """

    mean: float = 0.0
    std: float = 1.0

    def sample(self, key: jax.Array, batch: int) -> jax.Array:
        """(batch,) times."""
        return jax.nn.sigmoid(self.mean + self.std * jax.random.normal(key, (batch,)))

    def density(self, t: jax.Array) -> jax.Array:
        """The normal density of logit(t), times its derivative 1 / (t (1 - t)); finite at both ends."""
        inside = jnp.clip(t, jnp.finfo(t.dtype).tiny, 1 - jnp.finfo(t.dtype).epsneg)
        z = (jnp.log(inside) - jnp.log1p(-inside) - self.mean) / self.std
        return jnp.exp(-0.5 * z**2) / (math.sqrt(2 * math.pi) * self.std * inside * (1 - inside))


@dataclasses.dataclass(frozen=True)
class Mode:
    """t = 1 - u - scale (cos^2(pi u / 2) - 1 + u) for uniform u: heavy in the middle for scale > 0; Eq. 20 of SD3.

    Attributes:
        scale: -1 to 2 / (pi - 2); 0 is uniform.
    """

    scale: float = 1.29

    def __post_init__(self) -> None:
        if not MODE_SCALES[0] <= self.scale <= MODE_SCALES[1]:
            raise UserError("objective.mode_scale", self.scale, f"must lie in [-1, {MODE_SCALES[1]:.4f}]")

    def sample(self, key: jax.Array, batch: int) -> jax.Array:
        """(batch,) times."""
        return jnp.clip(self._time(jax.random.uniform(key, (batch,))), 0, 1)

    def density(self, t: jax.Array) -> jax.Array:
        """|du / dt| at the u that gives t, which bisection finds, as t falls with u."""

        def halve(_: int, interval: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            low, high = interval
            middle = (low + high) / 2
            later = self._time(middle) > t
            return jnp.where(later, middle, low), jnp.where(later, high, middle)

        low, high = jax.lax.fori_loop(0, BISECTIONS, halve, (jnp.zeros_like(t), jnp.ones_like(t)))
        u = (low + high) / 2
        slope = 1 + self.scale - self.scale * math.pi / 2 * jnp.sin(math.pi * u)
        return 1 / jnp.maximum(slope, jnp.finfo(t.dtype).eps)  # the extreme scales have poles

    def _time(self, u: jax.Array) -> jax.Array:
        return (1 + self.scale) * (1 - u) - self.scale * jnp.cos(math.pi / 2 * u) ** 2


@dataclasses.dataclass(frozen=True)
class CosMap:
    """Times whose signal-to-noise ratio is that of the cosine schedule at uniform u; Eq. 21 and 22 of SD3."""

    def sample(self, key: jax.Array, batch: int) -> jax.Array:
        """(batch,) times."""
        u = jax.random.uniform(key, (batch,))
        sine, cosine = jnp.sin(math.pi / 2 * u), jnp.cos(math.pi / 2 * u)
        return cosine / (sine + cosine)  # that of 1 - u, so that no time is 0

    def density(self, t: jax.Array) -> jax.Array:
        """2 / (pi (1 - 2 t + 2 t^2))."""
        return 2 / (math.pi * (1 - 2 * t + 2 * t**2))


@dataclasses.dataclass(frozen=True)
class Shifted:
    """Another distribution's times, moved by `shift_time`.

    Attributes:
        inner: where the times come from.
        shift: above 0.
    """

    inner: Uniform | LogitNormal | Mode | CosMap
    shift: float = 1.0

    def sample(self, key: jax.Array, batch: int) -> jax.Array:
        """(batch,) times."""
        return shift_time(self.inner.sample(key, batch), self.shift)

    def density(self, t: jax.Array) -> jax.Array:
        """The inner density at the time before the shift, times its derivative by t."""
        before = shift_time(t, 1 / self.shift)
        return self.inner.density(before) * self.shift / (self.shift + (1 - self.shift) * t) ** 2


def log_normal(key: jax.Array, process: Process, batch: int, mean: float, std: float) -> tuple[jax.Array, jax.Array]:
    """(batch,) times at which the logarithm of sigma / alpha is normal, and weights of 1 (Karras et al. 2022)."""
    ratio = jnp.exp(mean + std * jax.random.normal(key, (batch,)))
    return process.time_of_ratio(ratio), jnp.ones_like(ratio)


def of_steps(key: jax.Array, process: Any, batch: int, p: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """(batch,) times among the visited steps of a DDPM, and 1 / (n p) for those drawn with probability p (n,).

    Raises:
        UserError: the process has no integer steps.
    """
    if not hasattr(process, "visited"):
        raise UserError("objective.time_distribution", "steps", "needs a process with integer steps, such as ddpm")
    n = len(process.visited)
    if p is None:
        index, weight = jax.random.randint(key, (batch,), 0, n), jnp.ones(batch)
    else:
        index = jax.random.choice(key, n, (batch,), p=p)
        weight = 1 / (n * p[index])
    return jnp.asarray(process.times, weight.dtype)[index], weight


@dataclasses.dataclass(frozen=True)
class TrainingTimes:
    """Which times a network is trained at, and the weights of their losses; part of an objective.

    Attributes:
        time_distribution: how training times are drawn: "uniform", "logit_normal", "mode" or "cosmap" (Esser et al.
            2024, Sec. 3.1), "log_normal" (of sigma / alpha; Karras et al. 2022, Table 1) or "steps" (DDPM's integer
            steps, all alike).
        logit_mean: mean of logit(t) for "logit_normal"; above 0 means noisier.
        logit_std: standard deviation of logit(t), above 0.
        mode_scale: -1 to 1.75; weight of the middle times for "mode".
        shift: times in [0, 1] are moved by `processes.times.shift_time`.
        P_mean: mean of ln(sigma / alpha) for "log_normal" (EDM -1.2, EDM2 -0.4).
        P_std: its standard deviation (EDM 1.2, EDM2 1.0).
        loss_weighting: a time distribution of flows, whose density over that of the times drawn weighs the losses:
            their expectation is then that of `loss_weighting`, whatever the times; None = no weights. The shift stays
            with the times drawn.

    Raises:
        UserError: a field out of its range.
    """

    time_distribution: str = "uniform"
    logit_mean: float = 0.0
    logit_std: float = 1.0
    mode_scale: float = 1.29
    shift: float = 1.0
    P_mean: float = -1.2
    P_std: float = 1.2
    loss_weighting: str | None = None

    def __post_init__(self) -> None:
        check_choice("objective.time_distribution", self.time_distribution, NAMES)
        check_choice("objective.loss_weighting", self.loss_weighting or "uniform", OF_FLOWS)
        for name, unused in {"loss_weighting": None, "shift": 1.0}.items():
            if self.time_distribution not in OF_FLOWS and getattr(self, name) != unused:
                what = f"needs a time_distribution among {', '.join(OF_FLOWS)}; leave it at {unused}"
                raise UserError(f"objective.{name}", getattr(self, name), what)
        check_positive("objective", self, "logit_std", "shift", "P_std")
        self._flow_times("mode")

    def sample_times(self, key: jax.Array, process: Process, batch: int) -> tuple[jax.Array, jax.Array]:
        """(batch,) training times and the weights of their losses.

        Raises:
            UserError: the distribution is that of integer steps, and the process has none.
        """
        if self.time_distribution == "log_normal":
            return log_normal(key, process, batch, self.P_mean, self.P_std)
        if self.time_distribution == "steps":
            return of_steps(key, process, batch)
        drawn_from = Shifted(self._flow_times(self.time_distribution), self.shift)
        t = drawn_from.sample(key, batch)
        if self.loss_weighting is None:
            return t, jnp.ones_like(t)
        return t, self._flow_times(self.loss_weighting).density(t) / drawn_from.density(t)

    def _flow_times(self, name: str) -> Uniform | LogitNormal | Mode | CosMap:
        if name == "logit_normal":
            return LogitNormal(self.logit_mean, self.logit_std)
        if name == "mode":
            return Mode(self.mode_scale)
        return CosMap() if name == "cosmap" else Uniform()
