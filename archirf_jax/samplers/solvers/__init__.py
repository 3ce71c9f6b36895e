"""One solver a file, found by the file's name; each file ends in `build`, the frozen dataclass that makes the steps.

    init(denoise, grid, x)                                               -> solver_state, the denoiser's within it
    step(noise, denoise, x, t, t_next, condition, solver_state)          -> x at t_next, solver_state

The noise is standard normal like x, fresh at each step; t and t_next are scalars, the same for all examples. `init`
raises a UserError where grid, process and solver do not fit together.

Solvers whose step follows the flow from t to t_next by one answer pass s=t_next: euler, and ddim and euler_maruyama
with eta = 0. There a network of two times, whose answer is a mean velocity, is exact. The others need the answer at t
itself (a score, a posterior mean, a velocity to combine with those at other times) and pass s=None.

A solver whose `build` has the parameter `log_p` guides by a classifier in its own way, with `classifier_scale`.
"""

from __future__ import annotations

from archirf_jax import lazy

_HOMES = {
    "Ddim": ".ddim",
    "Ddpm": ".ddpm",
    "Dopri5": ".dopri5",
    "DpmSolver": ".dpmpp_2m",
    "Edm": ".edm",
    "Euler": ".euler",
    "EulerMaruyama": ".euler_maruyama",
    "Heun": ".heun",
    "Midpoint": ".midpoint",
}
__all__ = list(_HOMES)
__getattr__ = lazy.getter(__name__, _HOMES)
