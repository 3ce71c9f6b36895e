"""Solvers, guidance, likelihood and driver on perfect networks: quick for one process, slow for one of every kind.

`python -m benchmarks.oracle` measures the same of every process. That the checks can fail is shown as well.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import pytest

from archirf_jax import registry
from archirf_jax.processes.ddpm import DDPM
from archirf_jax.processes.rectified_flow import RectifiedFlow
from archirf_jax.samplers import solvers
from archirf_jax.samplers.config import SamplerConfig
from archirf_jax.samplers.solvers.euler import Euler
from tests.samplers import checks, compiled, guided
from tests.samplers.checks import BY_NAME, COLUMNS, Column, Row
from tests.samplers.forms import Compiled


def fewer_steps(row: Row) -> Row:
    """A DDPM of 250 steps, which destroy an image as a thousand do, and which ancestral sampling takes all."""
    process = row.process
    return row._replace(process=dataclasses.replace(process, steps=250) if isinstance(process, DDPM) else process)


ROWS = {row[:2]: fewer_steps(row) for row in checks.rows()}
FLOW = ROWS["flow linear", "velocity"]
ZERO_SNR = ROWS["ddpm zero SNR", "x0"]
# Every path, schedule, prediction and variance at least once.
SLOW = [
    *(ROWS[f"flow {path}", prediction] for path, prediction in (("linear", "x0"), ("vp", "eps"), ("gvp", "v"))),
    *(ROWS["ddpm linear", "eps, learned_range"], ROWS["ddpm scaled_linear", "eps, fixed_large"]),
    *(ROWS["ddpm zero SNR", "v"], ROWS["ddpm cosine", "x0"], ROWS["edm", "F"]),
]
# Not from pure noise, where a classifier's gradient says nothing of the data.
ADAPTIVE = [ROWS["flow linear", "eps"], ROWS["ddpm linear", "eps, learned_range"], ROWS["edm", "F"]]
GUIDED = (FLOW, ROWS["ddpm linear", "eps, learned_range"], ROWS["edm", "F"])
DRAWING = ("ddim eta=1", "ddpm", "edm churn=20")  # they draw noise, and many samples are needed
COMPILED = (BY_NAME["heun"], BY_NAME["edm churn=20"], BY_NAME["ddpm"])


@pytest.fixture(autouse=True)
def double_precision() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def names(value: Any) -> str | None:
    return " ".join(value[:2]) if isinstance(value, Row) else getattr(value, "name", None)


def test_every_solver_has_a_column() -> None:
    assert {column.config.solver.name for column in COLUMNS} | {"dopri5"} == set(registry.names(solvers))


@pytest.mark.parametrize("column", COLUMNS, ids=names)
def test_a_solver_has_its_order_or_the_distribution_of_the_data(column: Column) -> None:
    assert not [check for check in checks.checks(FLOW, column) if not check.holds]


@pytest.mark.parametrize(
    "column",
    [pytest.param(c, marks=[pytest.mark.slow] * (c.name in DRAWING)) for c in COLUMNS if c.name != "ddim"],
    ids=names,
)
def test_a_solver_begins_at_a_zero_snr_and_ends_at_the_data(column: Column) -> None:
    assert not [check for check in checks.checks(ZERO_SNR, column) if not check.holds]


@pytest.mark.slow
@pytest.mark.parametrize("row", SLOW, ids=names)
def test_on_every_kind_of_process(row: Row) -> None:
    """Every second solver, in turn; `benchmarks.oracle` has all."""
    denoise, columns = checks.plain(row), COLUMNS[SLOW.index(row) % 2 :: 2]
    assert not [
        (column.name, check) for column in columns for check in checks.checks(row, column, denoise) if not check.holds
    ]


@pytest.mark.parametrize("column", [BY_NAME["heun"]], ids=names)
def test_guided_samples_end_where_they_must_and_cost_what_they_say(column: Column) -> None:
    assert not [(name, check) for name, check in guided.Guided(FLOW).checks(column).items() if not check.holds]


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(GUIDED)))
def test_guidance_goes_with_every_solver(number: int) -> None:
    """Each solver with one of the processes; `benchmarks.oracle` has all."""
    made, columns = guided.Guided(GUIDED[number]), COLUMNS[number :: len(GUIDED)]
    assert not [(c.name, name, check) for c in columns for name, check in made.checks(c).items() if not check.holds]


@pytest.mark.parametrize("column", COMPILED, ids=names)
def test_the_compiled_driver_makes_the_samples_of_the_walk(column: Column) -> None:
    assert compiled.driver(FLOW, column).holds


@pytest.mark.slow
@pytest.mark.parametrize("row", [row for row in SLOW if row.prediction != "eps, fixed_large"], ids=names)
def test_likelihoods_are_as_wrong_as_they_say(row: Row) -> None:
    (found,) = compiled.likelihood([row])
    assert not [check for check in found if not check.holds]


@pytest.mark.slow
@pytest.mark.parametrize("row", ADAPTIVE, ids=names)
def test_dopri5_is_close_guided_or_not(row: Row) -> None:
    column = compiled.dopri5() or pytest.skip("needs diffrax")
    plain, by_guidance = compiled.adaptive([row], column)
    assert all(check.holds for check in plain), plain
    assert all(check.holds for check in by_guidance.values()), by_guidance
    assert compiled.refuses_state(row, column).holds


# --- that they can fail


def failing(row: Row, column: Column) -> set[str]:
    return {check.name for check in checks.checks(row, column) if not check.holds}


def instead(monkeypatch: pytest.MonkeyPatch, solver: Any) -> None:
    """This solver in every column."""
    monkeypatch.setattr(SamplerConfig, "make_solver", lambda self, log_p=None: solver)


def test_a_solver_of_a_lower_order_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    instead(monkeypatch, Euler())
    assert {"order", "order to the data"} <= failing(FLOW, BY_NAME["midpoint"])
    assert not guided.Guided(FLOW, ("none",)).checks(BY_NAME["midpoint"])["none"].holds


class Short(Euler):
    """Stops a hundredth of each step early."""

    def step(self, noise: Any, denoise: Any, x: Any, *rest: Any) -> Any:
        x_next, state = super().step(noise, denoise, x, *rest)
        return x_next + 0.01 * (x - x_next), state


def test_steps_that_are_a_hundredth_too_short_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    instead(monkeypatch, Short())
    assert "exact on a point" in failing(FLOW, BY_NAME["euler"])


class TwiceTheNoise:
    """Another solver's steps with twice their noise."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.init = inner, inner.init

    def step(self, noise: Any, *rest: Any) -> Any:
        return self.inner.step(2 * noise, *rest)


def test_a_distribution_that_is_too_wide_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    instead(monkeypatch, TwiceTheNoise(BY_NAME["euler_maruyama"].config.make_solver()))
    found = failing(FLOW, BY_NAME["euler_maruyama"])
    assert {"weak order", "distribution of the mixture", "distribution of the ODE"} <= found


@dataclasses.dataclass(frozen=True)
class Loud(RectifiedFlow):
    """Takes the noise for a hundredth larger than the network predicts."""

    def interpret(self, output: Any, x: Any, t: Any) -> Any:
        found = super().interpret(output, x, t)
        return found._replace(eps=1.01 * found.eps)


def test_a_process_that_misinterprets_its_network_fails() -> None:
    assert {"order", "order to the data"} <= failing(Row("loud", "velocity", Loud()), BY_NAME["heun"])


def test_guidance_of_another_scale_and_one_of_another_cost_fail() -> None:
    name = "classifier_free 2"
    made, column = guided.Guided(FLOW, (name,)), BY_NAME["euler"]
    for changes, holds in (({}, True), ({"guidance_scale": 2.01}, False), ({"guidance": "autoguidance"}, False)):
        kind = dataclasses.replace(made.kinds[name], fields=made.kinds[name].fields | changes)
        made.denoisers[name] = Compiled(guided.denoiser(FLOW.process, made.network, kind))
        assert made.checks(column)[name].holds == holds
