"""Rectified flow (Liu et al. 2022, "Flow Straight and Fast"; SD3: Esser et al. 2024, "Scaling Rectified Flow
Transformers").

    x_t = (1 - t) x0 + t eps                     a straight line from data (t = 0) to noise (t = 1)
    v   = dx_t / dt = eps - x0                   what the network learns
    x0  = x_t - t v,   eps = x_t + (1 - t) v     what v says about the two ends
    L   = mean over pixels of |v_theta - v|^2
"""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from archirf_jax.errors import UserError, nearest
from archirf_jax.processes.base import ModelFn, Prediction, drop_condition, expand

TIME_DISTRIBUTIONS = ("uniform", "logit_normal")
Times = TypeVar("Times", jax.Array, np.ndarray)


def shift_time(t: Times, shift: float) -> Times:
    """Times moved towards noise for larger images: shift t / (1 + (shift - 1) t) (SD3, Eq. 23); 0 and 1 stay.

    The denominator is written so that rounding moves neither end.

    Args:
        t: times in [0, 1].
        shift: positive; 1 leaves t as it is, SD3 uses 3 at 1024x1024.
    """
    return shift * t / (shift * t + (1 - t))


@dataclasses.dataclass(frozen=True)
class RectifiedFlow:
    """The straight-line process with the velocity target.

    Attributes:
        time_distribution: how training times are drawn: "uniform" or "logit_normal" (SD3, Sec. 3.1).
        logit_mean: mean of logit(t); positive means noisier.
        logit_std: standard deviation of logit(t), positive.
        shift: training times are moved by `shift_time`.
        time_scale: the network is told time_scale * t.
        condition_dropout: share of examples trained without condition, 0 to 1.

    Raises:
        UserError: a field out of its range.
    """

    time_distribution: str = "logit_normal"
    logit_mean: float = 0.0
    logit_std: float = 1.0
    shift: float = 1.0
    time_scale: float = 1000.0
    condition_dropout: float = 0.1

    def __post_init__(self) -> None:
        if self.time_distribution not in TIME_DISTRIBUTIONS:
            raise UserError(
                f"config.process.time_distribution: {self.time_distribution!r} is not one of "
                + ", ".join(TIME_DISTRIBUTIONS)
                + nearest(self.time_distribution, TIME_DISTRIBUTIONS)
            )
        for name in ("logit_std", "shift", "time_scale"):
            if not getattr(self, name) > 0:
                raise UserError(f"config.process.{name}: {getattr(self, name)} must be above 0")
        if not 0 <= self.condition_dropout <= 1:
            raise UserError(f"config.process.condition_dropout: {self.condition_dropout} must lie in [0, 1]")

    def sample_times(self, key: jax.Array, batch: int) -> jax.Array:
        """(batch,) training times in [0, 1]."""
        if self.time_distribution == "uniform":
            t = jax.random.uniform(key, (batch,))
        else:
            t = jax.nn.sigmoid(self.logit_mean + self.logit_std * jax.random.normal(key, (batch,)))
        return shift_time(t, self.shift)

    def loss(
        self, key: jax.Array, model_fn: ModelFn, x0: jax.Array, y: Any, null: Any
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Mean squared velocity error of each example.

        Args:
            key: for times, noise and dropped conditions.
            model_fn: see `processes.base`.
            x0: (B, H, W, C) images in [-1, 1].
            y: conditions, a pytree with leading axis B.
            null: the unconditional twin of y.

        Returns:
            losses (B,), and {"t": the times drawn}.
        """
        key_t, key_eps, key_drop = jax.random.split(key, 3)
        t = self.sample_times(key_t, x0.shape[0])
        eps = jax.random.normal(key_eps, x0.shape)
        tt = expand(t, x0)
        y = drop_condition(key_drop, y, null, self.condition_dropout)
        v = self._velocity(model_fn, (1 - tt) * x0 + tt * eps, t, y)
        return jnp.mean(jnp.square(v - (eps - x0)), axis=(1, 2, 3)), {"t": t}

    def predict(self, model_fn: ModelFn, x: jax.Array, t: jax.Array, y: Any) -> Prediction:
        """The network's x0, eps and v at x (B, H, W, C), t (B,)."""
        v = self._velocity(model_fn, x, t, y)
        tt = expand(t, x)
        return Prediction(x0=x - tt * v, eps=x + (1 - tt) * v, v=v)

    def prior(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Standard normal noise of `shape`: x at t = 1."""
        return jax.random.normal(key, shape)

    def _velocity(self, model_fn: ModelFn, x: jax.Array, t: jax.Array, y: Any) -> jax.Array:
        v = model_fn(x, self.time_scale * t, y)
        if v.shape != x.shape:  # one image channel would broadcast against two of the network in silence
            raise UserError(
                f"model: gives {v.shape[-1]} channels for images of {x.shape[-1]}, but a rectified flow learns the "
                "velocity alone; set model.learn_sigma to False"
            )
        return v


build = RectifiedFlow
