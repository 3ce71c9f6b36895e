"""Distributions of training times on [0, 1], each drawn from uniform or normal numbers and with its exact density.

SD3: Esser et al. 2024, "Scaling Rectified Flow Transformers", Sec. 3.1.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from archirf_jax.errors import UserError
from archirf_jax.processes.base import Times

BISECTIONS = 40  # of [0, 1]: below float32's resolution
MODE_SCALES = (-1.0, 2 / (math.pi - 2))


def shift_time(t: Times, shift: float) -> Times:
    """Times moved towards noise for larger images: shift t / (1 + (shift - 1) t) (SD3, Eq. 23); 0 and 1 stay.

    The denominator is written so that rounding moves neither end.

    Args:
        t: times in [0, 1].
        shift: positive; 1 leaves t as it is, SD3 uses 3 at 1024x1024.
    """
    return shift * t / (shift * t + (1 - t))


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
            raise UserError(f"config.process.mode_scale: {self.scale} must lie in [-1, {MODE_SCALES[1]:.4f}]")

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
