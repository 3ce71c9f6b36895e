"""An adaptive reference: Dormand-Prince 5(4) by diffrax on the probability-flow ODE in flow coordinates.

Needs the package diffrax (requirements-diffrax.txt). Each example has its own step sizes; the times of the grid are
only where it must stop, so one step is enough. The last stretch, where no network is trained, is one step of Euler's.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

from archirf_jax.contracts import Condition, Denoiser
from archirf_jax.errors import UserError
from archirf_jax.processes.base import Process
from archirf_jax.samplers.flow import check_consistent, velocity
from archirf_jax.samplers.ranges import check_range


@dataclasses.dataclass(frozen=True)
class Dopri5:
    """Dormand-Prince with error control.

    Attributes:
        rtol, atol: relative and absolute tolerance of each value, above 0.
        last: flow time of the last stretch, above 0.
        max_steps: most steps between two times of the grid.
    """

    rtol: float = 1e-4
    atol: float = 1e-4
    last: float = 1e-3
    max_steps: int = 4096

    def __post_init__(self) -> None:
        for name in ("rtol", "atol", "last"):
            check_range(f"sample.solver.{name}", getattr(self, name), 0, above=True)
        check_range("sample.solver.max_steps", self.max_steps, 1)

    def init(self, denoise: Denoiser, grid: np.ndarray, x: jax.Array) -> Any:
        """The denoiser's state without leaves: others are refused, as trial steps have no order to pass them along."""
        check_consistent(grid, "dopri5")
        state = denoise.init(x)
        if jax.tree.leaves(state):
            raise UserError("sample.solver.name", "dopri5", "cannot be used with guidance that has momentum; use heun")
        return state

    def step(
        self,
        noise: jax.Array,
        denoise: Denoiser,
        x: jax.Array,
        t: jax.Array,
        t_next: jax.Array,
        condition: Condition,
        solver_state: Any,
    ) -> tuple[jax.Array, Any]:
        """x (B, ...) at scalar time t -> x at t_next; it does not use the noise."""
        process = denoise.process
        tau, tau_next = process.flow_time(t), process.flow_time(t_next)
        stop = jnp.maximum(tau_next, jnp.minimum(self.last, tau))

        def flow(tau: jax.Array, x: jax.Array, condition: Condition) -> jax.Array:
            time = time_of(process, tau, t)
            scale = process.alpha(time) + process.sigma(time)
            prediction, _ = denoise(scale * x[None], time, condition, solver_state)
            if len(prediction.x0) != 1:
                raise UserError(
                    "sample.solver.name",
                    "dopri5",
                    "takes each example alone, so known pixels must be the same for all; use heun",
                )
            return velocity(prediction)[0]

        def solve(x: jax.Array, condition: Condition) -> jax.Array:
            condition = jax.tree.map(lambda leaf: leaf[None], condition)
            solution = diffrax.diffeqsolve(
                diffrax.ODETerm(flow),  # type: ignore[arg-type]
                diffrax.Dopri5(),
                t0=tau,
                t1=stop,
                dt0=None,
                y0=x,
                args=condition,
                stepsize_controller=diffrax.PIDController(rtol=self.rtol, atol=self.atol),
                max_steps=self.max_steps,
            )
            end = solution.ys[-1]
            return end + (tau_next - stop) * flow(stop, end, condition)

        end = jax.vmap(solve)(x / (process.alpha(t) + process.sigma(t)), condition)
        return (process.alpha(t_next) + process.sigma(t_next)) * end, solver_state


def time_of(process: Process, tau: jax.Array, start: jax.Array) -> jax.Array:
    """The time of flow time tau; `start` where tau is 1, whose ratio is infinite."""
    return jnp.where(tau < 1, process.time_of_ratio(tau / jnp.where(tau < 1, 1 - tau, 1)), start)


build = Dopri5
