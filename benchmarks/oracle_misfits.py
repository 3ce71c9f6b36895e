"""What `benchmarks.oracle` expects to be refused: parts that do not fit, each with what the message must name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from archirf_jax.processes.base import Process
from archirf_jax.processes.ddpm import DDPM
from archirf_jax.processes.edm import EDM
from archirf_jax.processes.rectified_flow import RectifiedFlow
from archirf_jax.samplers.choice import Choice
from archirf_jax.samplers.denoisers import Network
from archirf_jax.samplers.likelihood import log_density
from archirf_jax.samplers.sample import sample
from benchmarks import oracle_forms as forms
from benchmarks.oracle_laws import Cell, judged

FLOW, NOISY, STEPWISE = RectifiedFlow(), EDM(), DDPM()
FITTING = {"eta": ("ddim", "euler_maruyama"), "churn": ("edm",)}
DEFAULTS: dict[str, Any] = {"steps": 4}
SOLVERS = ("euler", "ddim", "heun", "midpoint", "dpmpp_2m", "edm", "ddpm", "euler_maruyama")
CONSISTENT = ("heun", "midpoint", "dpmpp_2m", "edm", "euler_maruyama")


def drawn(process: Process, choice: Choice) -> Any:
    """What a command would do with this choice, without running the program."""
    denoise = choice.make_denoiser(process, forms.conditional(process), forms.normal(np.zeros((1, 1, 1)), 1.0))
    solver, grid, y = choice.make_solver(), choice.make_grid(process), forms.images(forms.MIXTURE, 2)
    keys = jax.random.split(jax.random.key(0), 2)
    return jax.eval_shape(lambda: sample(keys, denoise, y, (1, 1, 1), grid=grid, solver=solver))


def measured(grid: np.ndarray) -> Any:
    """The log-density along a grid."""
    denoise, y = Network(FLOW, forms.conditional(FLOW)), forms.images(forms.MIXTURE, 2)
    x = jnp.zeros((2, 1, 1, 1))
    keys = jax.random.split(jax.random.key(0), 2)
    return jax.eval_shape(lambda: log_density(keys, denoise, x, y, grid=grid))


def cases() -> list[tuple[str, str, Callable[[], Any], str]]:
    """(solver, what does not fit, the attempt, a word of the message)."""

    def case(solver: str, law: str, process: Process, named: str, **fields: Any) -> tuple[str, str, Any, str]:
        return solver, law, lambda: drawn(process, Choice(**DEFAULTS | {"solver": solver} | fields)), named

    found = [case(s, f"{o} of {s}", FLOW, o, **{o: 0.5}) for o, fit in FITTING.items() for s in SOLVERS if s not in fit]
    found += [case(s, "grid archirf of flow", FLOW, "archirf", grid="archirf") for s in (*CONSISTENT, "ddpm")]
    found += [case("euler", "grid archirf of edm", NOISY, "archirf", grid="archirf")]
    for process, name in ((FLOW, "flow"), (NOISY, "edm")):
        found += [
            case("euler", f"grid {grid} of {name}", process, "grid", grid=grid)
            for grid in ("trailing", "leading", "50")
        ]
    projected = {"guidance": "adaptive_projected", "guidance_scale": 2.0}
    found += [
        case("ddim", "eta 2", FLOW, "eta", eta=2.0),
        case("eular", "an unknown solver", FLOW, "euler"),
        case("euler", "an unknown grid", FLOW, "karras", grid="karas"),
        case("euler", "an unknown guidance", FLOW, "autoguidance", guidance="autogidance"),
        case("euler", "an unknown threshold", FLOW, "static", threshold="statik"),
        case("euler", "shift of another grid", FLOW, "shifted", shift=3.0),
        case("euler", "more steps than T", STEPWISE, "1000", steps=2000, grid="trailing"),
        case("euler", "no steps", FLOW, "steps", steps=0),
        case(
            "euler", "autoguidance without a weaker network", FLOW, "weak", guidance="autoguidance", guidance_scale=2.0
        ),
        case("euler", "projected guidance in an interval", FLOW, "interval", **projected, guidance_interval=(0.2, 0.8)),
        case("euler", "projected guidance rescaled", FLOW, "rescale", **projected, guidance_rescale=0.5),
        case("euler", "an interval backwards", FLOW, "interval", guidance_interval=(0.8, 0.2)),
        case("euler", "scale below 0", FLOW, "scale", guidance_scale=-1.0),
        case("euler", "scale nan", FLOW, "scale", guidance_scale=float("nan")),
        case("euler", "strength 0", FLOW, "strength", strength=0.0),
        case("euler", "strength below every step", FLOW, "strength", strength=0.01),
        ("likelihood", "a grid that reaches the data", lambda: measured(forms.even(FLOW, 4, 1.0)), "grid"),
        ("likelihood", "an odd number of steps", lambda: measured(forms.even_in_log(FLOW, 5, 10.0, 0.1)), "grid"),
    ]
    return found


def misfits() -> list[Cell]:
    """Their cells."""
    return [cell_of(*case) for case in cases()]


def cell_of(solver: str, law: str, attempt: Callable[[], Any], named: str) -> Cell:
    """Refused, by a message that names what it should."""
    (cell,) = judged(("", "", solver, ""), {law: "refused"}, attempt, refused=True)
    if cell.verdict.startswith("refused") and named not in cell.verdict:
        return cell._replace(verdict=f"FAIL does not name {named}: {cell.verdict}")
    return cell
