"""The laws of `benchmarks.oracle`: each gives cells of the table, measured against `benchmarks.oracle_forms`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import scipy.stats

from archirf_jax.errors import UserError
from archirf_jax.processes.base import Process
from archirf_jax.processes.ddpm import DDPM
from archirf_jax.processes.edm import EDM
from archirf_jax.processes.rectified_flow import PATHS, PREDICTIONS, RectifiedFlow
from archirf_jax.samplers.choice import Choice
from benchmarks import oracle_forms as forms
from benchmarks.oracle_forms import GAUSSIAN, MIXTURE, POINT, TWO_POINTS, Compiled, Data, Noise, walk

STEPS = (16, 32, 64)
MANY = 128  # steps of a stochastic solver whose images are compared with the data
RATIOS = (10.0, 0.02)  # sigma / alpha between which orders are measured: no end has an order of its own
HIGHEST = 80.0  # sigma / alpha to start from where nothing can be said of pure noise
COUNTS = {"mixture": 2048, "gaussian": MANY + 2, "point": 16, "two points": 512}
TOLERANCE = 0.2  # of an order
MISSED = 0.01  # share of images that may end at the wrong one of two points, as they start where the ways part
EXACT = 1e-10  # rounding of float64 where sigma is 80


class Cell(NamedTuple):
    """A row of the table.

    Attributes:
        process, prediction, solver, guidance: where; "" where it does not matter.
        law: what must hold.
        measured: nan where nothing could be.
        expected: in words.
        verdict: "pass", "FAIL" and why, or "refused: " and the message where nothing else is right.
    """

    process: str
    prediction: str
    solver: str
    guidance: str
    law: str
    measured: float
    expected: str
    verdict: str


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
        choice: as a command would make it.
        order: of its error; 0 = it is stochastic.
        evaluations: of the network in N steps.
        last: least order seen where the steps end at the data. There dpmpp_2m's steps, in lambda, grow without bound,
            and its error falls as N^-2 log N.
    """

    name: str
    choice: Choice
    order: int = 0
    evaluations: Callable[[int], int] = lambda n: n
    last: float = 1.7

    def solver(self) -> Any:
        """What makes the steps."""
        return self.choice.make_solver()

    def grid(self, process: Process, steps: int, first: float) -> np.ndarray:
        """Steps from time `first` to the data."""
        return forms.even(process, steps, first)


COLUMNS = (
    Column("euler", Choice(solver="euler"), 1, last=0.8),
    Column("ddim", Choice(solver="ddim"), 1, last=0.8),
    Column("heun", Choice(solver="heun"), 2, lambda n: 2 * n - 1),
    Column("midpoint", Choice(solver="midpoint"), 2, lambda n: 2 * n),
    Column("dpmpp_2m", Choice(solver="dpmpp_2m"), 2, last=1.0),
    Column("edm", Choice(solver="edm"), 2, lambda n: 2 * n - 1),
    Column("ddpm", Choice(solver="ddpm")),
    Column("ddim eta=1", Choice(solver="ddim", eta=1.0)),
    Column("euler_maruyama", Choice(solver="euler_maruyama")),
    Column("edm churn=20", Choice(solver="edm", churn=20.0), 0, lambda n: 2 * n - 1),
)
HEUN, DDPM_COLUMN, DDIM_COLUMN = COLUMNS[2], COLUMNS[6], COLUMNS[7]


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
    return [*flows, *ddpm, Row("edm", "F", EDM()), Row("edm", "F, uncertainty", EDM(uncertainty=True))]


def judged(
    place: tuple[str, str, str, str],
    laws: Mapping[str, str],
    measure: Callable[[], Mapping[str, tuple[float, bool]]],
    refused: bool = False,
) -> list[Cell]:
    """A cell for each law (what is expected of it), from one measurement (a number, and whether it is right).

    Args:
        place: process, prediction, solver, guidance.
        laws: name -> what is expected.
        measure: name -> number and whether it is right.
        refused: a UserError is the only right answer.
    """
    try:
        found = measure()
    except UserError as error:
        return [
            Cell(*place, law, np.nan, text, f"{'' if refused else 'FAIL '}refused: {error}")
            for law, text in laws.items()
        ]
    except Exception as error:  # noqa: BLE001  # whatever it is, it belongs into the table
        what = f"FAIL {type(error).__name__}: {error}".splitlines()[0]
        return [Cell(*place, law, np.nan, text, what) for law, text in laws.items()]
    if refused:
        return [Cell(*place, law, np.nan, text, "FAIL not refused") for law, text in laws.items()]
    cells = []
    for law, text in laws.items():
        number, right = found[law]
        verdict = "pass" if right else "FAIL"
        cells.append(Cell(*place, law, float(number), text, verdict))
    return cells


def order(steps: tuple[int, ...], errors: list[float]) -> float:
    """The slope of the error over the number of steps, in logarithms."""
    return -float(np.polyfit(np.log(steps), np.log(np.maximum(errors, 1e-300)), 1)[0])


def plain(row: Row) -> Compiled:
    """The network without guidance."""
    return Compiled(Choice().make_denoiser(row.process, forms.conditional(row.process), None))


def says_nothing(row: Row, column: Column) -> bool:
    """Whether nothing can be said where no image is left: eps says nothing of it, and edm counts in sigma / alpha."""
    pure = float(row.process.alpha(np.asarray(1.0))) == 0
    return pure and (row.prediction == "eps" or column.choice.solver == "edm")


def start(row: Row, column: Column) -> float:
    """The time to start from: pure noise, or nearly."""
    return float(row.process.time_of_ratio(np.asarray(HIGHEST))) if says_nothing(row, column) else 1.0


def refusal(row: Row, column: Column, denoise: Compiled) -> list[Cell]:
    """The cell that says that nothing can be said of pure noise, where that is so."""
    if not says_nothing(row, column):
        return []

    def measure() -> dict[str, tuple[float, bool]]:
        end = walk_data(row, column, denoise, column.grid(row.process, 4, 1.0), np.random.default_rng(0))[1]
        return {"from pure noise": (float(end["point"][0]), True)}

    return judged(place(row, column), {"from pure noise": "refused"}, measure, refused=True)


def place(row: Row, column: Column, guidance: str = "none") -> tuple[str, str, str, str]:
    """Where a cell is."""
    return row.name, row.prediction, column.name, guidance


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
    the start and in every step's noise. The first image starts at 0 and meets no noise, the second starts at 1, the
    others start at 0 and meet noise of size 1 in one step each.
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

    draw: Noise = forms.no_noise if column.order else noise
    return split(x), split(walk(column.solver(), denoise, grid, x, all_data(), draw))


def deterministic(row: Row, column: Column, denoise: Compiled) -> list[Cell]:
    """Cells of a solver of the probability-flow ODE."""
    p = column.order
    inside = judged(
        place(row, column), {"order": f"{p} ± {TOLERANCE}"}, lambda: {"order": _inside_order(row, column, denoise)}
    )
    laws = {
        "order to the data": f"at least {column.last}",
        "order on a gaussian": f"at least {column.last}",
        "exact on a point": f"at most {EXACT}",
        "at the right one of two points": f"all but {MISSED}",
    }
    return (
        inside
        + refusal(row, column, denoise)
        + judged(place(row, column), laws, lambda: _to_the_data(row, column, denoise))
    )


def _inside_order(row: Row, column: Column, denoise: Compiled) -> tuple[float, bool]:
    errors = []
    for steps in STEPS:
        grid = forms.even_in_log(row.process, steps, *RATIOS)
        starts, ends = walk_data(row, column, denoise, grid, np.random.default_rng(1))
        exact = forms.transported(starts["mixture"], MIXTURE, row.process, grid[0, 0], grid[-1, 1])
        errors.append(rms(ends["mixture"] - exact))
    slope = order(STEPS, errors)
    return slope, abs(slope - column.order) <= TOLERANCE


def _to_the_data(row: Row, column: Column, denoise: Compiled) -> dict[str, tuple[float, bool]]:
    first, errors = start(row, column), []
    for steps in STEPS:
        grid = column.grid(row.process, steps, first)
        starts, ends = walk_data(row, column, denoise, grid, np.random.default_rng(2))
        kinds = {"mixture": MIXTURE, "gaussian": GAUSSIAN, "two points": TWO_POINTS}
        off = {k: ends[k] - forms.transported(starts[k], d, row.process, first, 0.0) for k, d in kinds.items()}
        errors.append(off | {"point": ends["point"] - POINT.means[0]})
    slopes = {k: order(STEPS, [rms(e[k]) for e in errors]) for k in ("mixture", "gaussian")}
    point = max(float(np.max(np.abs(e["point"]))) for e in errors)
    wrong = float(np.mean(np.abs(errors[-1]["two points"]) > 0.1))
    return {
        "order to the data": (slopes["mixture"], slopes["mixture"] >= column.last),
        "order on a gaussian": (slopes["gaussian"], slopes["gaussian"] >= column.last),
        "exact on a point": (point, point <= EXACT),
        "at the right one of two points": (wrong, wrong <= MISSED),
    }


def rms(x: np.ndarray) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(np.square(x))))


def stochastic(row: Row, column: Column, denoise: Compiled) -> list[Cell]:
    """Cells of a solver that adds noise."""
    laws = {
        "weak order": "at least 0.8",
        "law of the mixture": "its noise",
        "law of two points": "its noise",
        "law of the ODE": "its noise",
        "exact on a point": f"at most {EXACT}",
    }
    cells = refusal(row, column, denoise)
    cells += judged(place(row, column), laws, lambda: _laws(row, column, denoise))
    return cells


def own_noise(data: Data, count: int) -> float:
    """What the Wasserstein distance of two sets of exact draws stays below: its mean and four standard deviations."""
    return _own_noise(tuple(data.means), tuple(data.stds), tuple(data.weights), count)


@functools.cache
def _own_noise(means: tuple[float, ...], stds: tuple[float, ...], weights: tuple[float, ...], count: int) -> float:
    data, rng = Data(*map(np.asarray, (means, stds, weights))), np.random.default_rng(3)
    pairs = [(draws(data, count, rng), draws(data, count, rng)) for _ in range(40)]
    distances = [distance(*pair) for pair in pairs]
    return float(np.mean(distances) + 4 * np.std(distances, ddof=1))


def draws(data: Data, count: int, rng: np.random.Generator) -> np.ndarray:
    """Independent pixels."""
    return forms.quantile(rng.uniform(size=count), data)


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Wasserstein's, of order 1."""
    return float(scipy.stats.wasserstein_distance(a, b))


def prior_error(data: Data, process: Process, first: float) -> float:
    """The Wasserstein distance from the data to what the exact ODE makes of normal noise at time `first`."""
    p = (np.arange(4096) + 0.5) / 4096
    noise = float(process.sigma(np.asarray(first))) * scipy.stats.norm.ppf(p)
    return float(np.mean(np.abs(forms.transported(noise, data, process, first, 0.0) - forms.quantile(p, data))))


def _laws(row: Row, column: Column, denoise: Compiled) -> dict[str, tuple[float, bool]]:
    first, rng = start(row, column), np.random.default_rng(4)
    ends = {n: walk_data(row, column, denoise, column.grid(row.process, n, first), rng)[1] for n in (*STEPS, MANY)}
    slope = order((*STEPS, MANY), [_moment_error(row.process, first, ends[n]["gaussian"], n) for n in (*STEPS, MANY)])
    point = max(float(np.max(np.abs(end["point"] - POINT.means[0]))) for end in ends.values())
    found = {"weak order": (slope, slope >= 0.8), "exact on a point": (point, point <= EXACT)}
    for law, kind, data in (
        ("law of the mixture", "mixture", MIXTURE),
        ("law of two points", "two points", TWO_POINTS),
    ):
        coarse, fine = (distance(ends[n][kind], draws(data, COUNTS[kind], rng)) for n in (STEPS[0], MANY))
        # What a method of weak order 1 leaves of its error in so many more steps.
        allowed = own_noise(data, COUNTS[kind]) + coarse * STEPS[0] / MANY + prior_error(data, row.process, first)
        found[law] = (fine, fine <= allowed)
        if kind == "mixture":
            grid = HEUN.grid(row.process, STEPS[-1], start(row, HEUN))
            ode = walk_data(row, HEUN, denoise, grid, rng)[1]["mixture"]
            apart = distance(ends[MANY]["mixture"], ode)
            found["law of the ODE"] = (apart, apart <= allowed)
    return found


def _moment_error(process: Process, first: float, responses: np.ndarray, steps: int) -> float:
    """The exact error of mean and standard deviation, from `walk_data`'s responses, of the Gaussian."""
    base, gains = responses[0], responses[1 : 2 + steps] - responses[0]
    begun = forms.noised(GAUSSIAN, process, first)
    mean = base + gains[0] * begun.means[0]
    std = np.sqrt((gains[0] * begun.stds[0]) ** 2 + np.sum(np.square(gains[1:])))
    return float(np.hypot(mean - GAUSSIAN.means[0], std - GAUSSIAN.stds[0]))


def ancestral(row: Row, denoise: Compiled, columns: tuple[Column, Column] = (DDPM_COLUMN, DDIM_COLUMN)) -> list[Cell]:
    """Cells of all steps of a DDPM: the law of the data, and ddim with eta 1 makes ddpm's images of the same noise."""
    if not isinstance(row.process, DDPM):
        return []
    grid, ends, cells = Choice(grid="trailing", steps=row.process.steps).make_grid(row.process), [], []

    def law(column: Column) -> dict[str, tuple[float, bool]]:
        ends.append(walk_data(row, column, denoise, grid, np.random.default_rng(5))[1]["mixture"])
        apart = distance(ends[-1], draws(MIXTURE, COUNTS["mixture"], np.random.default_rng(6)))
        allowed = own_noise(MIXTURE, COUNTS["mixture"]) + prior_error(MIXTURE, row.process, 1.0)
        return {"law in all steps": (apart, apart <= allowed)}

    for column in columns:
        cells += judged(place(row, column), {"law in all steps": "its noise"}, functools.partial(law, column))
    if row.process.variance != "fixed_large" and len(ends) == 2:
        apart = float(np.max(np.abs(ends[0] - ends[1])))
        name, text = "ddpm's images in all steps", f"at most {EXACT}"
        cells += judged(place(row, columns[1]), {name: text}, lambda: {name: (apart, apart <= EXACT)})
    return cells
