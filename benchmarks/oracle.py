"""python -m benchmarks.oracle [--out=FILE] [--plot=FILE] [--markdown]: every solver against closed forms.

For data that is a Gaussian, a mixture of two or one or two points the perfect network is a closed form
(`archirf_jax.processes.oracles`), and so is where its probability-flow ODE ends (`benchmarks.oracle_forms`). Every
process, prediction, solver and guidance is run with it, in float64, and each cell of the table says what must hold,
what was measured, and the verdict: pass, FAIL, or refused where the parts make no sense together. Exit code 1 if a
cell fails.

Solvers run step by step and uncompiled, as one program for each number of steps would take hours to compile; what they
ask is compiled, and on one process the compiled driver is shown to make the same images. dopri5 is compiled, where
diffrax is installed; its guidance is measured for the first prediction of each process.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from benchmarks import oracle_compiled as compiled
from benchmarks import oracle_laws as laws
from benchmarks import oracle_plot
from benchmarks.machine import describe
from benchmarks.oracle_guidance import Guided, kinds
from benchmarks.oracle_laws import COLUMNS, Cell, Column, Row
from benchmarks.oracle_misfits import misfits

PANELS = {"rectified flow, velocity": ("flow linear", "velocity"), "DDPM, linear schedule, eps": ("ddpm linear", "eps")}


def cells_of(row: Row, columns: tuple[Column, ...] = COLUMNS, names: tuple[str, ...] = ()) -> list[Cell]:
    """The cells of solvers, without guidance and with those named (or all), that run step by step."""
    denoise, guided = laws.plain(row), Guided(row, names)
    found = laws.ancestral(row, denoise) if columns == COLUMNS else []
    for column in columns:
        found += (laws.deterministic if column.order else laws.stochastic)(row, column, denoise)
        found += guided.cells(column)
    return found


def table(rows: list[Row]) -> Iterator[list[Cell]]:
    """All cells, part by part."""
    yield misfits()
    yield compiled.driver(rows[0], COLUMNS)
    for name in dict.fromkeys(row.name for row in rows):
        group = [row for row in rows if row.name == name]
        yield compiled.likelihood(group)
        if compiled.has_dopri5():
            yield compiled.adaptive(group)
    for row in rows:
        yield cells_of(row)


def failed(cells: list[Cell]) -> list[Cell]:
    """Those that fail."""
    return [cell for cell in cells if cell.verdict.startswith("FAIL")]


def figure(cells: list[Cell]) -> str:
    """One solver on one process in a word: the order of a deterministic one, or that its law is right."""
    if not cells:
        return ""
    if failed(cells):
        return "FAIL"
    mark = " *" if any(cell.verdict.startswith("refused") for cell in cells) else ""
    orders = [cell.measured for cell in cells if cell.law == "order"]
    errors = [cell.measured for cell in cells if cell.law in ("error", "error of the exact trace")]
    return (f"{orders[0]:.2f}" if orders else f"{errors[0]:.2g}" if errors else "law ok") + mark


def main_table(cells: list[Cell], rows: list[Row]) -> list[list[str]]:
    """A heading and a line for each process and prediction."""
    names = list(dict.fromkeys(cell.solver for cell in cells if cell.process))
    found = [["process", "prediction", *names]]
    for row in rows:
        here = [cell for cell in cells if cell[:2] == row[:2] and cell.guidance == "none"]
        found.append([row.name, row.prediction, *(figure([c for c in here if c.solver == name]) for name in names)])
    return found


def guidance_table(cells: list[Cell]) -> list[list[str]]:
    """A heading and a line for each guidance."""
    found = [["guidance", "calls of the network a step", "largest error", "cells"]]
    for name, kind in kinds().items():
        here = [c for c in cells if c.guidance == name and c.law in ("ends and calls", "ends") and c.verdict == "pass"]
        every = [c for c in cells if c.guidance == name and c.law in ("ends and calls", "ends")]
        sizes = sorted({kind.batches(t) for t in (0.1, 0.9)})
        calls = f"{kind.networks} of " + " or ".join("B" if size == 1 else f"{size} B" for size in sizes)
        worst = max((c.measured for c in here), default=np.nan)
        found.append(
            [name, calls, f"{worst:.1g}" if worst else "0, the same bits", f"{len(here)} of {len(every)} right"]
        )
    return found


def markdown(lines: list[list[str]]) -> str:
    """A table."""
    return "\n".join("| " + " | ".join(line) + " |" for line in [lines[0], ["---"] * len(lines[0]), *lines[1:]])


def aligned(lines: list[list[str]]) -> str:
    """The same for a terminal."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join("  ".join(f"{word:{width}}" for word, width in zip(line, widths, strict=True)) for line in lines)


def compact(cells: list[Cell], rows: list[Row]) -> dict[str, Any]:
    """All cells: one entry for each solver, guidance and law, with a number for each row (null = not there)."""
    index = {row[:2]: i for i, row in enumerate(rows)}
    entries: dict[tuple[str, ...], dict[str, Any]] = {}
    for cell in cells:
        key = (cell.solver, cell.guidance, cell.law, cell.expected)
        entry = entries.setdefault(key, dict(zip(("solver", "guidance", "law", "expected"), key, strict=True)))
        if cell.verdict != "pass":
            entry.setdefault("verdicts", {}).setdefault(cell.verdict, []).append(index.get(cell[:2], -1))
        if not np.isnan(cell.measured):
            numbers = entry.setdefault("measured", [None] * len(rows))
            numbers[index[cell[:2]]] = float(f"{cell.measured:.3g}")
    return {"rows": [list(row[:2]) for row in rows], "cells": list(entries.values())}


def dump(figures: dict[str, Any], path: pathlib.Path) -> None:
    """JSON with one row and one entry a line."""
    lists = {name: ",\n  ".join(map(json.dumps, figures[name])) for name in ("rows", "cells")}
    head = json.dumps({k: v for k, v in figures.items() if k not in lists}, indent=1)[:-2]
    tail = "".join(f',\n "{name}": [\n  {lines}\n ]' for name, lines in lists.items())
    path.write_text(head + tail + "\n}\n")


def main(argv: list[str] | None = None) -> int:
    """Measure, print, and with --out and --plot write; 1 if a cell fails, else 0."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, help="also write all cells as JSON")
    parser.add_argument("--plot", type=pathlib.Path, help="also plot error against evaluations")
    parser.add_argument("--markdown", action="store_true", help="print Markdown")
    args = parser.parse_args(argv)
    rows, cells, begun = laws.rows(), list[Cell](), time.perf_counter()
    with jax.enable_x64(True):
        for part in table(rows):
            cells += part
            print(f"{time.perf_counter() - begun:5.0f} s {len(cells):5} cells", file=sys.stderr, flush=True)
        if args.plot:
            by_name = {row[:2]: row for row in rows}
            panels = {title: oracle_plot.lines(by_name[place]) for title, place in PANELS.items()}
            oracle_plot.plot(panels, oracle_plot.floor(), args.plot)
    form = markdown if args.markdown else aligned
    print(form(main_table(cells, rows)), form(guidance_table(cells)), sep="\n\n")
    passed, refused = (sum(c.verdict.startswith(word) for c in cells) for word in ("pass", "refused"))
    print(f"\n{len(cells)} cells: {passed} pass, {refused} are refused as they should be, {len(failed(cells))} fail")
    for cell in failed(cells):
        print(*cell, sep=" | ")
    if args.out:
        seconds = round(time.perf_counter() - begun)
        dump(describe() | {"numpy": np.__version__, "seconds": seconds} | compact(cells, rows), args.out)
    return int(bool(failed(cells)))


if __name__ == "__main__":
    sys.exit(main())
