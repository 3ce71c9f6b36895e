"""python -m benchmarks.gpu.report [--results=DIR] [--out=FILE]: tables of what `python -m benchmarks.gpu` measured.

They replace what is between two marks in FILE, docs/performance.md if not given. Parts without results are named.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
from collections.abc import Iterable
from typing import Any

from archirf_jax.files import atomic_write
from benchmarks.gpu.__main__ import STAGES
from benchmarks.gpu.networks import NETWORKS

Part = dict[str, Any]  # what one process wrote: rows by name
BEGIN, END = "<!-- What follows is written by python -m benchmarks.gpu.report -->", "<!-- Here it ends -->"
NONE = "–"
GIB = 2**30

# The least ratio of our images a second to PyTorch's, by row.
RATIOS = {f"step, {name}": 1.15 for name in ("DiT-B/2", "DiT-L/2", "DiT-XL/2", "MMDiT, depth 12")}
RATIOS |= {f"step, {name}": 1.0 for name in ("EDM2-S, 64x64", "ADM, ImageNet-64")}
RATIOS |= {"sampling, DiT-XL/2, guided": 1.3}
LEAST_SHARE = {"step, DiT-XL/2": 0.5}  # of the matrix rate
MOST_IDLE = 0.02  # share of the time
MOST_START = 15  # seconds, with a warm cache


def read(folder: pathlib.Path) -> dict[str, Part]:
    """All parts by name."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def report(parts: dict[str, Part]) -> str:
    """Markdown: the machine, a table of each kind, what is missing."""
    if not parts:
        return "No GPU has been measured yet."
    sections = {
        "Training steps": steps(parts),
        "Sampling": sampling(parts),
        "The loop": loop(parts.get("loop", {})),
        "Correctness": right(parts.get("right", {})),
        "A picture": picture(parts.get("picture", {})),
        "What is missing, and what to know": missing(parts),
    }
    return "\n\n".join([machine(parts), *(f"### {name}\n\n{text}" for name, text in sections.items() if text)])


def machine(parts: dict[str, Part]) -> str:
    """The devices, versions and commits that the parts name."""
    found: dict[str, list[str]] = {}
    for part in parts.values():
        for name, value in part.get("about", {}).items():
            found.setdefault(name, []).append(str(value) or "not known")
    for row in _peers(parts).values():
        for name in ("torch", "diffusers"):
            if name in row:
                found.setdefault(name, []).append(row[name])
    rate = parts.get("ours", {}).get("matrix_operations_per_second")
    words = [f"{name} {', '.join(dict.fromkeys(values))}" for name, values in found.items()]
    return "; ".join(words + ([f"matrix rate in bfloat16 {rate / 1e12:.4g} Tflop/s"] if rate else [])) + "."


def steps(parts: dict[str, Part]) -> str:
    """Training steps of ours beside PyTorch's."""
    peers, rows = _peers(parts), []
    for name in (f"step, {network}" for network in NETWORKS):
        ours, theirs = parts.get("ours", {}).get(name, {}), peers.get(name, {})
        memory = _pair(_in(ours, "program_bytes", GIB), _in(theirs, "peak_bytes", GIB))
        compiling = _pair(_in(ours, "compile_seconds"), _in(theirs, "compile_seconds"))
        share = _number(ours.get("share_of_matrix_rate")) + _target(LEAST_SHARE.get(name))
        attention = theirs.get("attention", NONE)
        rows.append([*_compared(name, ours, theirs), share, memory, compiling, attention])
    head = ["network", "batch", "ours, images/s", "PyTorch, images/s", "ratio (target)", "share of the matrix rate"]
    return _table([*head, "GiB, ours / PyTorch", "s to compile, the same", "PyTorch's attention"], rows)


def sampling(parts: dict[str, Part]) -> str:
    """Samplers of ours beside PyTorch's."""
    ours, peers = parts.get("ours", {}), _peers(parts)
    names = [name for name in dict.fromkeys([*ours, *peers]) if name.startswith("sampling, ")]
    rows = [_compared(name, ours.get(name, {}), peers.get(name, {})) for name in names]
    return _table(["sampler", "batch", "ours, images/s", "PyTorch, images/s", "ratio (target)"], rows)


def loop(part: Part) -> str:
    """What a training costs apart from its steps."""
    rows = []
    for name in ("loop, from memory", "loop, from Grain"):
        row = part.get(name, {})
        rows.append([f"{name}: images/s", _number(row.get("images_per_second"))])
        idle = _number(row.get("share_device_idle")) + _most(MOST_IDLE)
        rows.append([f"{name}: share of the time in which the device has no work", idle])
        rows.append([f"{name}: share of the host's thread", _number(row.get("share_host_cpu"))])
    start, saves = part.get("start-up", {}), part.get("saves", {})
    rows.append(["DiT-XL/2, start to first step, s: cold cache", _number(start.get("cold_seconds"))])
    rows.append(["the same, warm cache", _number(start.get("warm_seconds")) + _most(MOST_START)])
    rows.append(["a save of DiT-B/4 keeps the training waiting, s", _number(saves.get("seconds_blocked"))])
    return _table(["what", "result (target)"], rows) if part else ""


def right(part: Part) -> str:
    """Checks that the device computes correctly."""
    rows = []
    for name, row in part.items():
        if not isinstance(row, dict) or name == "about" or "error" in row:
            continue
        if name.startswith("golden"):
            rows += _golden(name, row)
        elif "largest" in row:
            rows.append([name, f"{row['largest']:.1e}", NONE, NONE])
        elif "differing" in row:
            rows.append([name, f"{len(row['differing'])} arrays differ", _names(row["differing"]), NONE])
        elif "planned_bytes" in row:
            sizes = [f"{kind} {_number(_in(row, f'{kind}_bytes', GIB))}" for kind in ("planned", "program", "counted")]
            rows.append([name, f"{', '.join(sizes)} GiB", NONE, NONE])
        elif "loss" in row:
            rows.append([name, f"loss {_number(row['loss'])}, {row['skipped']:.0f} skipped", NONE, NONE])
    return _table(["check", "largest error, or result", "wrong", "late"], rows)


def picture(part: Part) -> str:
    """A training of a few minutes."""
    rows = [
        [f"{name}: {key}", _number(value)]
        for name in ("training", "samples")
        for key, value in part.get(name, {}).items()
        if isinstance(value, int | float)
    ]
    return _table(["what", "result"], rows)


def missing(parts: dict[str, Part]) -> str:
    """Parts without results, parts that did not end, rows that failed, and what the results note; a line each."""
    lines = []
    for name in (name for *_, names in STAGES for name in names):
        if name not in parts:
            lines.append(f"`{name}.json` is missing.")
            continue
        part = parts[name]
        if part.get("end") != "done":
            lines.append(f"`{name}`: {part.get('end', 'has not ended')}.")
        if "note" in part:
            lines.append(f"`{name}`: {part['note']}")
        for row, value in part.items():
            if isinstance(value, dict) and "error" in value:
                lines.append(f"`{name}`, {row}: {' '.join(str(value['error']).split())}")
    return "\n".join(f"- {line}" for line in lines)


def _golden(name: str, row: Part) -> list[list[str]]:
    """A row for each kind of golden case, which is the first word of its name."""
    found = []
    cases = [*row["errors"], *row["failed"], *row["late"]]
    for kind in sorted({case.partition("_")[0] for case in cases}):

        def of(names: Iterable[str], kind: str = kind) -> list[str]:
            return [case for case in names if case.partition("_")[0] == kind]

        largest = max((row["errors"][case] for case in of(row["errors"])), default=None)
        wrong = [*of(row["wrong"]), *(f"{case}: {row['failed'][case]}" for case in of(row["failed"]))]
        error = NONE if largest is None else f"{largest:.1e}"
        found.append([f"{name}, {kind}", error, _names(wrong), _names(of(row["late"]))])
    return found


def _peers(parts: dict[str, Part]) -> Part:
    """The rows of all PyTorch's parts."""
    wanted = (part for name, part in parts.items() if name.startswith("peers_"))
    return {name: row for part in wanted for name, row in part.items() if isinstance(row, dict)}


def _compared(name: str, ours: Part, theirs: Part) -> list[str]:
    """Name, batch, images a second of both, and their ratio."""
    rate, other = (row.get("images_per_second") for row in (ours, theirs))
    ratio = rate / other if rate and other else None
    batch = str(ours.get("batch", theirs.get("batch", NONE)))
    return [name.partition(", ")[2], batch, _number(rate), _number(other), _number(ratio) + _target(RATIOS.get(name))]


def _in(row: Part, name: str, unit: float = 1.0) -> float | None:
    value = row.get(name)
    return None if value is None else value / unit


def _number(value: float | None) -> str:
    if value is None:
        return NONE
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _pair(ours: float | None, theirs: float | None) -> str:
    return f"{_number(ours)} / {_number(theirs)}"


def _target(least: float | None) -> str:
    return "" if least is None else f" (≥ {least})"


def _most(most: float) -> str:
    return f" (≤ {most})"


def _names(names: list[str]) -> str:
    return ", ".join(names) or "none"


def _table(head: list[str], rows: list[list[str]]) -> str:
    cells = [[cell.replace("|", "/") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *cells)) if rows else ""


def replaced(text: str, new: str) -> str:
    """`text` with `new` between the two marks.

    Raises:
        ValueError: a mark is not there once, or the second one comes first.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(END) < text.index(BEGIN):
        raise ValueError(f"needs one line {BEGIN} and after it one line {END}")
    return f"{text.partition(BEGIN)[0]}{BEGIN}\n\n{new}\n\n{END}{text.partition(END)[2]}"


def main() -> None:
    """Read, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=pathlib.Path, default=pathlib.Path("benchmarks/results/gpu"))
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("docs/performance.md"))
    args = parser.parse_args()
    try:
        atomic_write(args.out, replaced(args.out.read_text(), report(read(args.results))))
    except (ValueError, OSError) as e:
        sys.exit(f"error: --out: {args.out}: {e}")


if __name__ == "__main__":
    main()
