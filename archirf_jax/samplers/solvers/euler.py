"""Euler's method on the probability-flow ODE dx/dt = v: first order, one evaluation a step."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from archirf_jax.processes.base import ModelFn, Process


@dataclasses.dataclass(frozen=True)
class Euler:
    """x(t_next) = x(t) + (t_next - t) v(x, t)."""

    def init(self, x: jax.Array) -> Any:
        """No memory."""
        return ()

    def step(
        self,
        keys: jax.Array,
        process: Process,
        model_fn: ModelFn,
        x: jax.Array,
        t: jax.Array,
        t_next: jax.Array,
        y: Any,
        memory: Any,
    ) -> tuple[jax.Array, Any]:
        """x (B, H, W, C) at scalar time t -> x at t_next; keys are unused, the method is deterministic."""
        v = process.predict(model_fn, x, jnp.broadcast_to(t, x.shape[:1]), y).v
        return x + (t_next - t) * v, memory


build = Euler
