"""The texts of a set in a file of their own, so that the set is not read for them.

One array holds the texts' bytes, one where those of each example end. Archives have checksums: damage is found.
"""

from __future__ import annotations

import itertools
import json
import pathlib
import secrets
from collections.abc import Iterable, Sequence

import numpy as np

from archirf_jax import untrusted
from archirf_jax.files import atomic_write

Texts = dict[str, list[str]]  # of one example, by the name of the feature
BYTES, ENDS = "bytes", "ends"


def write(path: pathlib.Path, rows: Iterable[Texts]) -> None:
    """Keep the texts of examples, whole or not at all.

    Args:
        path: .npz file.
        rows: of each example.

    Raises:
        OSError: it cannot be written.
    """
    parts = [json.dumps(row).encode() for row in rows]
    ends = np.asarray(list(itertools.accumulate(map(len, parts))), np.int64)
    arrays = {BYTES: np.frombuffer(b"".join(parts), np.uint8), ENDS: ends}
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")  # several runs may come to it at once
    atomic_write(path, lambda file: np.savez(file, **arrays), part)  # type: ignore[arg-type]


def read(path: pathlib.Path, count: int, features: Sequence[str]) -> list[Texts]:
    """The texts of `count` examples.

    Raises:
        Unreadable: the file is absent or damaged, or holds others.
    """
    arrays = untrusted.read_arrays(path)
    try:
        content, ends = arrays[BYTES].tobytes(), arrays[ENDS].tolist()
        rows = [untrusted.parse_json(content[start:end]) for start, end in itertools.pairwise([0, *ends])]
        fits = len(rows) == count and all(_are_texts(row, features) for row in rows)
    except (LookupError, TypeError, ValueError) as e:
        raise untrusted.Unreadable(e) from e
    if not fits:
        raise untrusted.Unreadable(f"it does not hold the texts {', '.join(features)} of {count} examples")
    return rows


def _are_texts(row: object, features: Sequence[str]) -> bool:
    if not isinstance(row, dict) or row.keys() != set(features):
        return False
    return all(isinstance(each, list) and all(isinstance(text, str) for text in each) for each in row.values())
