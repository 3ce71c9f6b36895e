"""The steps a sampler takes: (N, 2) pairs of times, from and to, float64 on the host.

In a consistent grid each step starts where the one before ended; the times fall from 1 (noise) to 0 (data). Spacings of
DDPM's integer steps are named as in the field; step k lies at t = (k + 1) / T.

    uniform     even times from 1 to 0
    shifted     the same, moved by SD3's `shift_time`
    linspace    steps T-1 to 0 evenly, rounded; then the data. Other processes: even times from 1 to 1 / 1000, then 0
    trailing    every (T / N)-th step from T-1 down, then the data
    leading     every (T // N)-th step from 0 up; the noisiest steps are never visited
    karras      even in sigma^(1 / 7) between the process's largest and smallest sigma, then 0 (EDM, Eq. 5)
    archirf     the original project's: see `archirf`
    250         or 10,20,30 or ddim50: ADM's respacing (`processes.respacing`), then the data
"""

from __future__ import annotations

import numpy as np

from archirf_jax.errors import UserError, nearest
from archirf_jax.processes.base import Process
from archirf_jax.processes.ddpm import DDPM
from archirf_jax.processes.rectified_flow import RectifiedFlow
from archirf_jax.processes.respacing import respaced
from archirf_jax.processes.times import shift_time

NAMES = ("uniform", "shifted", "linspace", "trailing", "leading", "karras", "archirf")
SIGMAS = (0.002, 80.0)  # EDM's smallest and largest
RHO = 7.0
DEFINED_AT_DATA = ("velocity", "v")  # predictions that say what the noise is where none is left


def make(name: str, process: Process, steps: int, shift: float = 1.0) -> np.ndarray:
    """(N, 2) steps of the named grid.

    Args:
        name: see the module docstring.
        process: whose times these are.
        steps: N, 1 or more; a respacing says its own number.
        shift: above 0; only "shifted" takes another than 1.

    Raises:
        UserError: an unknown grid, one that the process has not, or numbers that do not fit.
    """
    if steps < 1:
        raise UserError(f"steps: {steps} must be at least 1")
    if not 0 < shift < float("inf"):
        raise UserError(f"shift: {shift} must be a finite number above 0")
    if shift != 1 and name != "shifted":
        raise UserError(f"shift: {shift} belongs to the grid 'shifted' alone, not to {name!r}; set it to 1")
    if name in ("uniform", "shifted"):
        return pairs(shift_time(np.linspace(1.0, 0.0, steps + 1), shift))
    if name == "karras":
        return pairs(np.append(process.time_of_ratio(karras_sigmas(process, steps)), 0.0))
    if name == "archirf":
        return archirf(process, steps)
    if isinstance(process, DDPM):
        return pairs(np.append((_ddpm_steps(name, process, steps) + 1) / process.steps, 0.0))
    if name == "linspace":
        return pairs(np.append(np.linspace(1.0, 1 / 1000, steps), 0.0))
    raise _unknown(name, process)


def pairs(times: np.ndarray) -> np.ndarray:
    """(N, 2) steps through N + 1 times."""
    return np.stack([times[:-1], times[1:]], axis=1)


def karras_sigmas(process: Process, steps: int) -> np.ndarray:
    """(steps,) falling sigma / alpha, within EDM's range and the process's own."""
    low = getattr(process, "sigma_min", SIGMAS[0])
    high = getattr(process, "sigma_max", SIGMAS[1])
    if isinstance(process, DDPM):
        low = max(low, float(process.ratio(np.asarray(1 / process.steps))))
        high = min(high, float(process.ratio(np.asarray(1.0))))
    return np.linspace(high ** (1 / RHO), low ** (1 / RHO), steps) ** RHO


def archirf(process: Process, steps: int) -> np.ndarray:
    """The original project's steps, kept for comparison: they do not fit together.

    Flows: N times from 1 to 0 and steps of 1/N, so that the network is asked about later times than x has. DDPM: every
    (T // N)-th step from 1 up, without the last one to the data: N - 1 steps, and noise remains.

    Raises:
        UserError: fewer than 2 steps, more than DDPM has, or a process of which the network cannot be asked at t = 0.
    """
    if steps < 2:
        raise UserError(f"steps: {steps} must be at least 2 for the grid 'archirf'")
    if not isinstance(process, DDPM):
        if not isinstance(process, RectifiedFlow) or process.path == "vp" or process.prediction not in DEFINED_AT_DATA:
            raise UserError(
                "grid: 'archirf' asks the network about t=0, which only ddpm and rectified_flow with path='linear' or "
                f"'gvp' and prediction={' or '.join(map(repr, DEFINED_AT_DATA))} allow; use 'uniform'"
            )
        times = np.linspace(1.0, 0.0, steps)
        return np.stack([times, times - 1 / steps], axis=1)
    _check_count(steps, process)
    places = 1 + np.arange(steps)[::-1] * (process.steps // steps)
    return pairs((np.minimum(places, process.steps - 1) + 1) / process.steps)


def starting_at(grid: np.ndarray, t: float) -> np.ndarray:
    """The steps of a grid that start at time t or later in sampling, at least one.

    Raises:
        UserError: t is before every step but the last would need it: none is left.
    """
    kept = grid[grid[:, 0] <= t + 1e-9]
    if not len(kept):
        raise UserError(f"strength: {t} is below the last step of the grid, at {grid[-1, 0]:.4g}; take more steps")
    return kept


def _ddpm_steps(name: str, process: DDPM, steps: int) -> np.ndarray:
    """Falling integer steps."""
    total = process.steps
    if name not in ("linspace", "trailing", "leading"):
        if not (name[:1].isdecimal() or name.startswith("ddim")):
            raise _unknown(name, process)
        return respaced(name, total)[::-1]
    _check_count(steps, process)
    if name == "leading":
        return np.arange(steps)[::-1] * (total // steps)
    if name == "linspace":
        places = np.linspace(0, total - 1, steps) if steps > 1 else np.asarray([total - 1])
        return np.round(places)[::-1].astype(int)
    # Counted down from T: other orders of the same sum round halves to other steps than the published ones.
    return np.round(np.arange(total, 0, -total / steps)[:steps]).astype(int) - 1


def _check_count(steps: int, process: DDPM) -> None:
    if steps > process.steps:
        raise UserError(f"steps: {steps} is more than the {process.steps} steps of the process")


def _unknown(name: str, process: Process) -> UserError:
    if isinstance(process, DDPM):
        more = ", or a respacing such as 250 or ddim50"
        return UserError(f"grid: {name!r} is not one of {', '.join(NAMES)}{more}{nearest(name, NAMES)}")
    allowed = [known for known in NAMES if known not in ("trailing", "leading")]
    if name in NAMES or name[:1].isdecimal() or name.startswith("ddim"):
        return UserError(
            f"grid: {name!r} counts the integer steps of ddpm, which this process has not; it has {', '.join(allowed)}"
        )
    return UserError(f"grid: {name!r} is not one of {', '.join(allowed)}{nearest(name, allowed)}")
