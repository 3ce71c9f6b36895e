"""python -m tests.golden FILE.npz ...: each case's source, largest relative error, and whether it passes."""

from __future__ import annotations

import pathlib
import sys

from tests.golden.cases import UnsupportedSource, compare, load


def main(paths: list[str]) -> int:
    """Run every case; 0 if all pass, 1 if one fails or is unsupported, 2 if none is named or a file cannot be read."""
    if not paths:
        print("usage: python -m tests.golden FILE.npz ...", file=sys.stderr)
        return 2
    status = 0
    for path in paths:
        try:
            case = load(pathlib.Path(path))
            error, tolerance = compare(case)
        except UnsupportedSource as e:
            print(f"FAIL  {path}: {e}")
            status = max(status, 1)
            continue
        except (OSError, KeyError, ValueError) as e:
            print(f"FAIL  {path}: not a readable golden case: {e}")
            status = 2
            continue
        passed = error <= tolerance
        status = status if passed else max(status, 1)
        print(f"{'pass' if passed else 'FAIL'}  {path}: {case.source}: max relative error {error:.2e} (<= {tolerance:g})")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
