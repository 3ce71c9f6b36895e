"""python -m benchmarks.oracle [--out=FILE] [--plot=FILE] [--markdown]: every solver against closed forms.

For data that is a Gaussian, a mixture of two or one or two points the perfect network is a closed form
(`archirf_jax.processes.oracles`), and so is where its probability-flow ODE ends. What `tests/samplers/checks.py`,
`guided.py` and `compiled.py` measure, and the tests check for some processes, is measured here in float64 for every
process, prediction, solver and guidance. Exit code 1 if a cell fails.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks import oracle_plot
from benchmarks.machine import describe
from tests.samplers import checks, compiled
from tests.samplers.checks import BY_NAME, COLUMNS, Check, Row
from tests.samplers.guided import OFF, Guided, kinds

PANELS = {"rectified flow, velocity": ("flow linear", "velocity"), "DDPM, linear schedule, eps": ("ddpm linear", "eps")}
FIGURES = ("order", "error", "error of the exact trace")  # checks whose number stands in the table


class Cell(NamedTuple):
    """A check of a process and prediction, a solver and a guidance."""

    row: tuple[str, str]
    solver: str
    guidance: str
    check: Check


def cells(rows: list[Row]) -> Iterator[Cell]:
    """All of them, part by part."""
    for column in COLUMNS:
        yield Cell(rows[0][:2], column.name, "none", compiled.driver(rows[0], column))
    for name in dict.fromkeys(row.name for row in rows):
        yield from _compiled([row for row in rows if row.name == name])
    for row in rows:
        denoise, guided = checks.plain(row), Guided(row)
        for column in COLUMNS:
            yield from (Cell(row[:2], column.name, "none", check) for check in checks.checks(row, column, denoise))
            yield from (Cell(row[:2], column.name, name, check) for name, check in guided.checks(column).items())


def _compiled(rows: list[Row]) -> Iterator[Cell]:
    for row, found in zip(rows, compiled.likelihood(rows), strict=True):
        yield from (Cell(row[:2], "likelihood", "none", check) for check in found)
    column = compiled.dopri5()
    if column is not None:
        plain, by_guidance = compiled.adaptive(rows, column)
        yield from (Cell(row[:2], "dopri5", "none", check) for row, check in zip(rows, plain, strict=True))
        yield from (Cell(rows[0][:2], "dopri5", name, check) for name, check in by_guidance.items())
        yield from (
            Cell(row[:2], "dopri5", "adaptive_projected 2", compiled.refuses_state(row, column)) for row in rows
        )


def main_table(found: list[Cell], rows: list[Row]) -> list[list[str]]:
    """A heading and a line for each process and prediction."""
    names = list(dict.fromkeys(cell.solver for cell in found))
    names.sort(key=lambda name: list(BY_NAME).index(name) if name in BY_NAME else len(BY_NAME))
    lines = [["process", "prediction", *names]]
    for row in rows:
        here = [cell for cell in found if cell.row == row[:2] and cell.guidance == "none"]
        lines.append([*row[:2], *(_figure([cell.check for cell in here if cell.solver == name]) for name in names)])
    return lines


def _figure(found: list[Check]) -> str:
    """One solver on one process in a word: the order of a deterministic one, or that its distribution is right."""
    if not all(check.holds for check in found):
        return "FAIL"
    mark = " *" if any(check.name == "from pure noise" for check in found) else ""
    numbers = [f"{check.measured:.3g}" for check in found if check.name in FIGURES]
    return (numbers[0] if numbers else "right") + mark if found else ""


def guidance_table(found: list[Cell]) -> list[list[str]]:
    """A heading and a line for each guidance."""
    lines = [["guidance", "calls of the network a step", "largest error", "cells"]]
    for name, kind in kinds().items():
        here = [cell.check for cell in found if cell.guidance == name and cell.check.name in ("ends and calls", "ends")]
        sizes = sorted({kind.batches(t) for t in (0.1, 0.9)})
        calls = f"{kind.networks} of " + " or ".join("B" if size == 1 else f"{size} B" for size in sizes)
        worst = "0, the same bits" if name in OFF else f"{max(check.measured for check in here):.1g}"
        lines.append([name, calls, worst, f"{sum(check.holds for check in here)} of {len(here)} right"])
    return lines


def markdown(lines: list[list[str]]) -> str:
    """A table."""
    return "\n".join("| " + " | ".join(line) + " |" for line in [lines[0], ["---"] * len(lines[0]), *lines[1:]])


def aligned(lines: list[list[str]]) -> str:
    """The same for a terminal."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join("  ".join(f"{word:{width}}" for word, width in zip(line, widths, strict=True)) for line in lines)


def dump(found: list[Cell], rows: list[Row], seconds: float, path: pathlib.Path) -> None:
    """JSON with an entry a line for each solver, guidance and check, and in it a number for each row."""
    index, entries = {row[:2]: i for i, row in enumerate(rows)}, dict[tuple[str, ...], dict[str, Any]]()
    for cell in found:
        key = (cell.solver, cell.guidance, cell.check.name, cell.check.expected)
        named = zip(("solver", "guidance", "check", "expected"), key, strict=True)
        entry = entries.setdefault(key, {**dict(named), "fails": [], "measured": [None] * len(rows)})
        if not cell.check.holds:
            entry["fails"].append(index[cell.row])
        if not np.isnan(cell.check.measured):
            entry["measured"][index[cell.row]] = float(f"{cell.check.measured:.3g}")
    head = json.dumps(describe() | {"numpy": np.__version__, "seconds": round(seconds)}, indent=1)[:-2]
    lists: dict[str, list[Any]] = {"rows": [row[:2] for row in rows], "cells": list(entries.values())}
    lines = {name: ",\n  ".join(map(json.dumps, values)) for name, values in lists.items()}
    path.write_text(head + "".join(f',\n "{name}": [\n  {text}\n ]' for name, text in lines.items()) + "\n}\n")


def main(argv: list[str] | None = None) -> int:
    """Measure, print, and with --out and --plot write; 1 if a cell fails, else 0."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, help="also write all cells as JSON")
    parser.add_argument("--plot", type=pathlib.Path, help="also plot error against evaluations")
    parser.add_argument("--markdown", action="store_true", help="print Markdown")
    args = parser.parse_args(argv)
    rows, found, begun = checks.rows(), list[Cell](), time.perf_counter()
    with jax.enable_x64(True):
        for cell in cells(rows):
            found.append(cell)
            if len(found) % 100 == 0:
                print(f"{time.perf_counter() - begun:5.0f} s {len(found):5} cells", file=sys.stderr, flush=True)
        if args.plot:
            by_name = {row[:2]: row for row in rows}
            panels = {title: oracle_plot.lines(by_name[place]) for title, place in PANELS.items()}
            oracle_plot.plot(panels, oracle_plot.floor(), args.plot)
    form = markdown if args.markdown else aligned
    print(form(main_table(found, rows)), form(guidance_table(found)), sep="\n\n")
    fails = [cell for cell in found if not cell.check.holds]
    print(f"\n{len(found)} cells: {len(found) - len(fails)} pass, {len(fails)} fail")
    for cell in fails:
        print(*cell.row, *cell[1:3], *cell.check[:3], sep=" | ")
    if args.out:
        dump(found, rows, time.perf_counter() - begun, args.out)
    return int(bool(fails))


if __name__ == "__main__":
    sys.exit(main())
