"""The oracle suite passes what is right, and its cells fail when something is not."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import jax
import pytest

from archirf_jax.processes.rectified_flow import RectifiedFlow
from archirf_jax.samplers.choice import Choice
from archirf_jax.samplers.solvers.euler import Euler
from benchmarks import oracle, oracle_laws, oracle_misfits
from benchmarks import oracle_guidance as guidance
from benchmarks.oracle_forms import Compiled
from benchmarks.oracle_guidance import Guided
from benchmarks.oracle_laws import COLUMNS, Cell, Row
from tests import running

FLOW = Row("flow linear", "velocity", RectifiedFlow())
BY_NAME = {column.name: column for column in COLUMNS}
RESULTS = json.loads((running.REPOSITORY / "benchmarks/results/oracle.json").read_text())


def cells(row: Row, solver: str, *guidance: str) -> dict[tuple[str, str], Cell]:
    """By guidance and law."""
    with jax.enable_x64(True):
        found = oracle.cells_of(row, (BY_NAME[solver],), guidance or ("none",))
    return {(cell.guidance, cell.law): cell for cell in found}


def failing(found: dict[tuple[str, str], Cell]) -> set[str]:
    return {law for (_, law), cell in found.items() if cell.verdict.startswith("FAIL")}


def wrong(monkeypatch: pytest.MonkeyPatch, column: str, solver: Any) -> None:
    """Another solver in this column."""
    monkeypatch.setattr(Choice, "make_solver", lambda self: solver)
    assert BY_NAME[column].solver() is solver


def test_cells_of_a_deterministic_and_of_a_stochastic_solver_pass() -> None:
    for name in ("dpmpp_2m", "euler_maruyama"):
        found = cells(FLOW, name, "none", "classifier_free 2", "adaptive_projected 2")
        assert len(found) >= 8 and not failing(found), found


def test_a_solver_of_a_lower_order_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong(monkeypatch, "midpoint", Euler())
    assert {"order", "order to the data", "ends and calls"} <= failing(cells(FLOW, "midpoint"))


class Short(Euler):
    """Stops a hundredth of each step early."""

    def step(self, z: Any, denoise: Any, x: Any, t: Any, t_next: Any, y: Any, memory: Any) -> Any:
        x_next, memory = super().step(z, denoise, x, t, t_next, y, memory)
        return x_next + 0.01 * (x - x_next), memory


def test_steps_that_are_a_hundredth_too_short_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong(monkeypatch, "euler", Short())
    assert "exact on a point" in failing(cells(FLOW, "euler"))


class TwiceTheNoise:
    """Another solver's steps with twice their noise."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.init = inner, inner.init

    def step(self, z: Any, *rest: Any) -> Any:
        return self.inner.step(2 * z, *rest)


def test_a_law_that_is_too_wide_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong(monkeypatch, "euler_maruyama", TwiceTheNoise(BY_NAME["euler_maruyama"].solver()))
    assert {"weak order", "law of the mixture", "law of the ODE"} <= failing(cells(FLOW, "euler_maruyama"))


@dataclasses.dataclass(frozen=True)
class Loud(RectifiedFlow):
    """Takes the noise for a hundredth larger than the network says."""

    def interpret(self, output: Any, x: Any, t: Any) -> Any:
        found = super().interpret(output, x, t)
        return found._replace(eps=1.01 * found.eps)


def test_a_process_that_misreads_its_network_is_seen() -> None:
    assert {"order", "order to the data"} <= failing(cells(Row("loud", "velocity", Loud()), "heun"))


def test_guidance_of_another_scale_and_one_of_another_cost_are_seen() -> None:
    with jax.enable_x64(True):
        guided = Guided(FLOW, ("classifier_free 2",))
        (kind,) = guided.kinds.values()
        stronger = dataclasses.replace(kind, choice=Choice(guidance_scale=2.01))
        twice = dataclasses.replace(kind, choice=Choice(guidance="autoguidance", guidance_scale=2.0))
        verdicts = []
        for other in (kind, stronger, twice):
            made = guidance.denoiser(FLOW.process, guided.network, other)
            guided.denoisers["classifier_free 2"] = Compiled(made)
            verdicts += [cell.verdict for cell in guided.cells(BY_NAME["euler"])]
    assert verdicts == ["pass", "FAIL", "FAIL"]


def test_a_misfit_that_is_not_refused_or_not_named_is_seen() -> None:
    assert all(cell.verdict.startswith("refused") for cell in oracle_misfits.misfits())
    allowed = oracle_misfits.cell_of("euler", "nothing wrong", lambda: {}, "euler")
    assert allowed.verdict == "FAIL not refused"
    solver, law, attempt, _ = oracle_misfits.cases()[0]
    assert oracle_misfits.cell_of(solver, law, attempt, "zebra").verdict.startswith("FAIL does not name zebra")


def test_the_stored_table_is_of_every_solver_process_and_guidance_and_nothing_in_it_fails() -> None:
    assert RESULTS["rows"] == [list(row[:2]) for row in oracle_laws.rows()]
    solvers = {cell["solver"] for cell in RESULTS["cells"]}
    assert {*BY_NAME, "likelihood", "dopri5"} <= solvers
    verdicts = [verdict for cell in RESULTS["cells"] for verdict in cell.get("verdicts", {})]
    assert verdicts and all(verdict.startswith("refused") for verdict in verdicts)
    docs = (running.REPOSITORY / "docs/samplers.md").read_text()
    orders = {c["solver"]: c["measured"] for c in RESULTS["cells"] if c["law"] == "order"}
    for i, (process, prediction) in enumerate(RESULTS["rows"]):
        (line,) = [line for line in docs.splitlines() if line.startswith(f"| {process} | {prediction} |")]
        assert all(f"{orders[name][i]:.2f}" in line for name in orders)
