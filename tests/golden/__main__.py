"""python -m tests.golden FILE.npz ...: each case's source, largest relative error, and whether it passes."""

from __future__ import annotations

import pathlib
import sys
import zipfile

from flax.errors import FlaxError

from tests.golden.cases import compare, load

UNREADABLE = (OSError, EOFError, zipfile.BadZipFile, AttributeError, KeyError, MemoryError, TypeError, ValueError)
UNFIT = (
    FlaxError,
    AttributeError,
    KeyError,
    TypeError,
    ValueError,
)  # parameters or inputs that do not belong to the network


def main(paths: list[str]) -> int:
    """Run every case; 0 if all pass, 1 if one fails or is unsupported, 2 if none is named or a file cannot be read."""
    if not paths:
        print("usage: python -m tests.golden FILE.npz ...", file=sys.stderr)
        return 2
    return max([_report(path) for path in paths])


def _report(path: str) -> int:
    try:
        case = load(pathlib.Path(path))
    except UNREADABLE as e:
        print(f"FAIL  {path}: not a readable golden case: {e}")
        return 2
    try:
        error, tolerance = compare(case)
    except UNFIT as e:
        print(f"FAIL  {path}: {type(e).__name__}: {e}")
        return 1
    verdict = "pass" if error <= tolerance else "FAIL"
    print(f"{verdict}  {path}: {case.source}: max relative error {error:.2e} (<= {tolerance:g})")
    return 0 if error <= tolerance else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
