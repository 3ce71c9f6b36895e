"""An adaptive reference: Dormand-Prince 5(4) by diffrax on the probability-flow ODE in straight coordinates.

Needs the package diffrax (requirements-diffrax.txt). Each image has its own step sizes; the steps of the grid are only
where it must stop, so one step is enough. The last stretch, where no network is trained, is one step of Euler's.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

from archirf_jax.errors import UserError
from archirf_jax.processes.base import Process
from archirf_jax.samplers.denoisers import Denoiser
from archirf_jax.samplers.straight import check_consistent, velocity


@dataclasses.dataclass(frozen=True)
class Dopri5:
    """Dormand-Prince with error control.

    Attributes:
        rtol, atol: tolerances of an image's pixels.
        last: straight time of the last stretch, above 0.
        max_steps: most steps between two times of the grid.
    """

    rtol: float = 1e-4
    atol: float = 1e-4
    last: float = 1e-3
    max_steps: int = 4096

    def init(self, denoise: Denoiser, grid: np.ndarray, x: jax.Array) -> Any:
        """Nothing: a denoiser that remembers has no place between trial steps."""
        check_consistent(grid, "dopri5")
        if jax.tree.leaves(denoise.init(x)):
            raise UserError("solver: dopri5 cannot be used with guidance that has momentum; use heun")
        return ()

    def step(
        self, z: jax.Array, denoise: Denoiser, x: jax.Array, t: jax.Array, t_next: jax.Array, y: Any, memory: Any
    ) -> tuple[jax.Array, Any]:
        """x (B, H, W, C) at scalar time t -> x at t_next; the noise is unused."""
        process = denoise.process
        tau, tau_next = process.flow_time(t), process.flow_time(t_next)
        stop = jnp.maximum(tau_next, jnp.minimum(self.last, tau))

        def flow(tau: jax.Array, x: jax.Array, y: Any) -> jax.Array:
            time = time_of(process, tau, t)
            scale = process.alpha(time) + process.sigma(time)
            prediction, _ = denoise(scale * x[None], time, y, ())
            if len(prediction.x0) != 1:
                raise UserError("solver: dopri5 takes each image apart, so known pixels must be those of all; use heun")
            return velocity(prediction)[0]

        def solve(x: jax.Array, y: Any) -> jax.Array:
            y = jax.tree.map(lambda leaf: leaf[None], y)
            solution = diffrax.diffeqsolve(
                diffrax.ODETerm(flow),  # type: ignore[arg-type]
                diffrax.Dopri5(),
                t0=tau,
                t1=stop,
                dt0=None,
                y0=x,
                args=y,
                stepsize_controller=diffrax.PIDController(rtol=self.rtol, atol=self.atol),
                max_steps=self.max_steps,
            )
            end = solution.ys[-1]
            return end + (tau_next - stop) * flow(stop, end, y)

        straight = jax.vmap(solve)(x / (process.alpha(t) + process.sigma(t)), y)
        return (process.alpha(t_next) + process.sigma(t_next)) * straight, memory


def time_of(process: Process, tau: jax.Array, start: jax.Array) -> jax.Array:
    """The time of straight time tau; `start` where tau is 1, whose ratio is infinite."""
    return jnp.where(tau < 1, process.time_of_ratio(tau / jnp.where(tau < 1, 1 - tau, 1)), start)


build = Dopri5
