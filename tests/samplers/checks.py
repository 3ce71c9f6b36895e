"""What holds of a solver on the perfect network of any process, measured against `forms`.

`test_oracle` checks it for some processes and `python -m benchmarks.oracle` for all. Solvers run step by step and
uncompiled, as one program for each number of steps would take hours to compile; what they ask is compiled.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import scipy.stats

from archirf_jax.errors import UserError
from archirf_jax.processes.base import Process
from archirf_jax.processes.ddpm import DDPM
from archirf_jax.processes.edm import EDM
from archirf_jax.processes.rectified_flow import PATHS, PREDICTIONS, RectifiedFlow
from archirf_jax.samplers.config import SamplerConfig
from archirf_jax.samplers.denoisers import NetworkDenoiser
from tests.samplers import forms
from tests.samplers.forms import GAUSSIAN, MIXTURE, POINT, TWO_POINTS, Compiled, Data, Noise, walk

STEPS = (16, 32, 64)
MANY = 128  # steps of a stochastic solver whose samples are compared with the data
RATIOS = (10.0, 0.02)  # sigma / alpha between which orders are measured: no end has an order of its own
HIGHEST = 80.0  # sigma / alpha to start from where pure noise cannot be started from
COUNTS = {"mixture": 2048, "gaussian": MANY + 2, "point": 16, "two points": 512}
TOLERANCE = 0.2  # of an order
MISSED = 0.01  # share of samples that may end at the wrong one of two points, as they start where the ways part
EXACT = 1e-10  # rounding of float64 where sigma is 80


class Check(NamedTuple):
    """A measurement.

    Attributes:
        name: what must hold.
        measured: a number, nan where there is none.
        expected: in words.
        holds: whether it does.
    """

    name: str
    measured: float
    expected: str
    holds: bool


class Row(NamedTuple):
    """A process and what its network predicts."""

    name: str
    prediction: str
    process: Process


@dataclasses.dataclass(frozen=True)
class Column:
    """A solver.

    Attributes:
        name: of the table.
        config: as a command would make it.
        order: of its error; 0 = it is stochastic.
        evaluations: of the network in N steps.
        last: least order seen where the steps end at the data. There dpmpp_2m's steps, in lambda, grow without bound,
            and its error falls as N^-2 log N.
    """

    name: str
    config: SamplerConfig
    order: int = 0
    evaluations: Callable[[int], int] = lambda n: n
    last: float = 1.7


def _column(name: str, *rest: Any, **fields: Any) -> Column:
    return Column(name, SamplerConfig.from_config({"solver": {"name": name.split()[0], **fields}}), *rest)


COLUMNS = (
    _column("euler", 1, lambda n: n, 0.8),
    _column("ddim", 1, lambda n: n, 0.8),
    _column("heun", 2, lambda n: 2 * n - 1),
    _column("midpoint", 2, lambda n: 2 * n),
    _column("dpmpp_2m", 2, lambda n: n, 1.0),
    _column("edm", 2, lambda n: 2 * n - 1),
    _column("ddpm"),
    _column("ddim eta=1", eta=1.0),
    _column("euler_maruyama"),
    _column("edm churn=20", 0, lambda n: 2 * n - 1, churn=20.0),
)
BY_NAME = {column.name: column for column in COLUMNS}


def rows() -> list[Row]:
    """Every process with every prediction."""
    flows = [Row(f"flow {a}", b, RectifiedFlow(path=a, prediction=b)) for a in PATHS for b in PREDICTIONS]
    ddpm = []
    for schedule in ("linear", "scaled_linear", "cosine"):
        for prediction, variance in (
            *((name, "fixed_small") for name in ("eps", "x0", "v")),
            *(("eps", name) for name in ("fixed_large", "learned_range")),
        ):
            label = prediction if variance == "fixed_small" else f"{prediction}, {variance}"
            process = DDPM(schedule=schedule, prediction=prediction, variance=variance)
            ddpm.append(Row(f"ddpm {schedule}", label, process))
    for prediction in ("x0", "v"):
        process = DDPM("scaled_linear", prediction=prediction, variance="fixed_small", zero_terminal_snr=True)
        ddpm.append(Row("ddpm zero SNR", prediction, process))
    return [*flows, *ddpm, Row("edm", "F", EDM())]


def checks(row: Row, column: Column, denoise: Compiled | None = None) -> list[Check]:
    """Everything that holds of a solver without guidance."""
    denoise = denoise or plain(row)
    found = refusal(row, column, denoise)
    if column.order:
        return found + [inside_order(row, column, denoise), *to_the_data(row, column, denoise)]
    return found + stochastic(row, column, denoise) + ancestral(row, column, denoise)


def plain(row: Row) -> Compiled:
    """The network without guidance."""
    return Compiled(NetworkDenoiser(row.process, forms.conditional(row.process)))


def order(steps: tuple[int, ...], errors: list[float]) -> float:
    """The slope of the error over the number of steps, in logarithms."""
    return -float(np.polyfit(np.log(steps), np.log(np.maximum(errors, 1e-300)), 1)[0])


def rms(x: np.ndarray) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(np.square(x))))


def refuses_noise(row: Row) -> bool:
    """Whether pure noise is refused as a start: eps does not determine x0 there."""
    return row.prediction == "eps" and float(row.process.alpha(np.asarray(1.0))) == 0


def start(row: Row) -> float:
    """The time to start from: pure noise, or nearly."""
    return float(row.process.time_of_ratio(np.asarray(HIGHEST))) if refuses_noise(row) else 1.0


def refusal(row: Row, column: Column, denoise: Compiled) -> list[Check]:
    """Pure noise is refused where it must be."""
    if not refuses_noise(row):
        return []
    try:
        walk_data(row, column, denoise, forms.even(row.process, 4, 1.0), np.random.default_rng(0))
    except UserError:
        return [Check("from pure noise", np.nan, "refused", True)]
    return [Check("from pure noise", np.nan, "refused", False)]


@functools.cache
def all_data() -> Data:
    """The conditions of `COUNTS` images of each kind, one kind after another."""
    kinds = {"mixture": MIXTURE, "gaussian": GAUSSIAN, "point": POINT, "two points": TWO_POINTS}
    parts = [forms.images(kinds[name], count) for name, count in COUNTS.items()]
    return Data(*(np.concatenate(leaves) for leaves in zip(*parts, strict=True)))


def split(x: np.ndarray) -> dict[str, np.ndarray]:
    """The pixels of each kind."""
    return dict(zip(COUNTS, np.split(x.ravel(), np.cumsum(list(COUNTS.values()))[:-1]), strict=True))


def walk_data(
    row: Row, column: Column, denoise: Compiled, grid: np.ndarray, rng: np.random.Generator
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Starts and ends of each kind.

    Where the solver is stochastic the Gaussian kind is of responses: as the network is linear there, so is the end in
    the start and in every step's noise. The first image starts at 0 without noise, the second starts at 1, the others
    start at 0 and get noise of size 1 in one step each.
    """
    x = float(row.process.sigma(np.asarray(grid[0, 0]))) * rng.normal(size=(sum(COUNTS.values()), 1, 1, 1))
    zero = COUNTS["mixture"]
    gaussian = slice(zero, zero + COUNTS["gaussian"])
    if not column.order:
        x[gaussian] = 0
        x[zero + 1] = 1

    def noise(i: int, shape: tuple[int, ...]) -> np.ndarray:
        z = rng.normal(size=shape)
        z[gaussian] = 0
        if i < MANY:
            z[zero + 2 + i] = 1
        return z

    fresh: Noise = forms.no_noise if column.order else noise
    return split(x), split(walk(column.config.make_solver(), denoise, grid, x, all_data(), fresh))


def inside_order(row: Row, column: Column, denoise: Compiled) -> Check:
    """The order of a deterministic solver between two noise levels."""
    errors = []
    for steps in STEPS:
        grid = forms.even_in_log(row.process, steps, *RATIOS)
        starts, ends = walk_data(row, column, denoise, grid, np.random.default_rng(1))
        exact = forms.transported(starts["mixture"], MIXTURE, row.process, grid[0, 0], grid[-1, 1])
        errors.append(rms(ends["mixture"] - exact))
    slope = order(STEPS, errors)
    return Check("order", slope, f"{column.order} ± {TOLERANCE}", abs(slope - column.order) <= TOLERANCE)


def to_the_data(row: Row, column: Column, denoise: Compiled) -> list[Check]:
    """A deterministic solver from noise to data."""
    first, errors = start(row), []
    for steps in STEPS:
        grid = forms.even(row.process, steps, first)
        starts, ends = walk_data(row, column, denoise, grid, np.random.default_rng(2))
        kinds = {"mixture": MIXTURE, "gaussian": GAUSSIAN, "two points": TWO_POINTS}
        off = {k: ends[k] - forms.transported(starts[k], d, row.process, first, 0.0) for k, d in kinds.items()}
        errors.append(off | {"point": ends["point"] - POINT.means[0]})
    wrong = float(np.mean(np.abs(errors[-1]["two points"]) > 0.1))
    slopes = {k: order(STEPS, [rms(e[k]) for e in errors]) for k in ("mixture", "gaussian")}
    least = f"at least {column.last}"
    return [
        Check("order to the data", slopes["mixture"], least, slopes["mixture"] >= column.last),
        Check("order on a gaussian", slopes["gaussian"], least, slopes["gaussian"] >= column.last),
        _exact_on_a_point([e["point"] for e in errors]),
        Check("at the right one of two points", wrong, f"all but {MISSED}", wrong <= MISSED),
    ]


def _exact_on_a_point(errors: list[np.ndarray]) -> Check:
    worst = max(float(np.max(np.abs(error))) for error in errors)
    return Check("exact on a point", worst, f"at most {EXACT}", worst <= EXACT)


@functools.cache
def _own_noise(means: tuple[float, ...], stds: tuple[float, ...], weights: tuple[float, ...], count: int) -> float:
    data, rng = Data(*map(np.asarray, (means, stds, weights))), np.random.default_rng(3)
    distances = [distance(draws(data, count, rng), draws(data, count, rng)) for _ in range(40)]
    return float(np.mean(distances) + 4 * np.std(distances, ddof=1))


def own_noise(data: Data, count: int) -> float:
    """What the Wasserstein distance of two sets of exact draws stays below: its mean and four standard deviations."""
    return _own_noise(tuple(data.means), tuple(data.stds), tuple(data.weights), count)


def draws(data: Data, count: int, rng: np.random.Generator) -> np.ndarray:
    """Independent pixels."""
    return forms.quantile(rng.uniform(size=count), data)


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """The Wasserstein distance of order 1."""
    return float(scipy.stats.wasserstein_distance(a, b))


def prior_error(data: Data, process: Process, first: float) -> float:
    """The Wasserstein distance from the data to what the exact ODE makes of normal noise at time `first`."""
    p = (np.arange(4096) + 0.5) / 4096
    noise = float(process.sigma(np.asarray(first))) * scipy.stats.norm.ppf(p)
    return float(np.mean(np.abs(forms.transported(noise, data, process, first, 0.0) - forms.quantile(p, data))))


def stochastic(row: Row, column: Column, denoise: Compiled) -> list[Check]:
    """A solver that adds noise: its samples are distributed as the data and as those of the ODE."""
    first, rng = start(row), np.random.default_rng(4)
    grids = {n: forms.even(row.process, n, first) for n in (*STEPS, MANY)}
    ends = {n: walk_data(row, column, denoise, grid, rng)[1] for n, grid in grids.items()}
    slope = order((*STEPS, MANY), [_moment_error(row.process, first, ends[n]["gaussian"], n) for n in ends])
    found = [Check("weak order", slope, "at least 0.8", slope >= 0.8)]
    found += [_exact_on_a_point([end["point"] - POINT.means[0] for end in ends.values()])]
    for kind, data in (("mixture", MIXTURE), ("two points", TWO_POINTS)):
        coarse, fine = (distance(ends[n][kind], draws(data, COUNTS[kind], rng)) for n in (STEPS[0], MANY))
        # What a method of weak order 1 leaves of its error in so many more steps.
        allowed = own_noise(data, COUNTS[kind]) + coarse * STEPS[0] / MANY + prior_error(data, row.process, first)
        found.append(Check(f"distribution of the {kind}", fine, "its noise", fine <= allowed))
        if kind == "mixture":
            heun = BY_NAME["heun"]
            grid = forms.even(row.process, STEPS[-1], start(row))
            apart = distance(ends[MANY]["mixture"], walk_data(row, heun, denoise, grid, rng)[1]["mixture"])
            found.append(Check("distribution of the ODE", apart, "its noise", apart <= allowed))
    return found


def _moment_error(process: Process, first: float, responses: np.ndarray, steps: int) -> float:
    """The exact error of mean and standard deviation, from `walk_data`'s responses, of the Gaussian."""
    base, gains = responses[0], responses[1 : 2 + steps] - responses[0]
    begun = forms.noised(GAUSSIAN, process, first)
    mean = base + gains[0] * begun.means[0]
    std = np.sqrt((gains[0] * begun.stds[0]) ** 2 + np.sum(np.square(gains[1:])))
    return float(np.hypot(mean - GAUSSIAN.means[0], std - GAUSSIAN.stds[0]))


def ancestral(row: Row, column: Column, denoise: Compiled) -> list[Check]:
    """All steps of a DDPM: the distribution of the data, and ddim with eta 1 makes ddpm's samples of the same noise."""
    if not isinstance(row.process, DDPM) or column.name not in ("ddpm", "ddim eta=1"):
        return []
    grid = SamplerConfig.from_config({"grid": "trailing", "steps": row.process.steps}).make_grid(row.process)
    end = walk_data(row, column, denoise, grid, np.random.default_rng(5))[1]["mixture"]
    apart = distance(end, draws(MIXTURE, COUNTS["mixture"], np.random.default_rng(6)))
    allowed = own_noise(MIXTURE, COUNTS["mixture"]) + prior_error(MIXTURE, row.process, 1.0)
    found = [Check("distribution in all steps", apart, "its noise", apart <= allowed)]
    if column.name != "ddpm" and row.process.variance != "fixed_large":
        other = walk_data(row, BY_NAME["ddpm"], denoise, grid, np.random.default_rng(5))[1]["mixture"]
        off = float(np.max(np.abs(end - other)))
        found.append(Check("ddpm's samples in all steps", off, f"at most {EXACT}", off <= EXACT))
    return found
