"""Arrays on disk that are filled row by row: what was done before a kill is not done again.

A folder holds `PROGRESS` until it is whole, then a header, which is written last and says what the arrays are.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from absl import logging

from archirf_jax import untrusted
from archirf_jax.errors import UserError
from archirf_jax.files import atomic_write

PROGRESS = "progress.json"  # what is being made and how far it is; gone when the folder is whole
LARGEST = 65_504.0  # float16
Shapes = Mapping[str, tuple[tuple[int, ...], Any]]  # shape and type of each array, by the name of its file
Parts = Callable[[int], Iterator[Mapping[str, np.ndarray]]]


def is_whole(folder: pathlib.Path, header: str) -> bool:
    """Whether what is made in a folder is whole, by the name of its header."""
    return (folder / header).exists() and not (folder / PROGRESS).exists()


def check_same(folder: pathlib.Path, found: Any, wanted: Mapping[str, Any]) -> None:
    """Raise a UserError if a whole folder's header has other fields than those that are wanted."""
    if named := [name for name, value in wanted.items() if getattr(found, name) != value]:
        raise UserError("out", str(folder), f"holds another cache ({', '.join(named)} differ); give a new folder")


def fill(folder: pathlib.Path, plan: Mapping[str, Any], shapes: Shapes, parts: Parts) -> dict[str, np.ndarray]:
    """Fill arrays, or go on with them.

    Args:
        folder: made, with its parents.
        plan: JSON values that decide every byte.
        shapes: of the arrays, which have one number of rows.
        parts: called with the number of rows that are there, gives the others by file, in order.

    Returns:
        The arrays, memory-mapped.

    Raises:
        UserError: the folder holds something else or cannot be written.
    """
    done = _begun(folder, plan)
    arrays = {name: _opened(folder / name, *shape, new=done == 0) for name, shape in shapes.items()}
    total = len(next(iter(arrays.values())))
    for part in parts(done):
        rows = slice(done, done + len(next(iter(part.values()))))
        for name, array in arrays.items():
            array[rows] = part[name]
            array.flush()
        done = rows.stop
        atomic_write(folder / PROGRESS, json.dumps({"plan": plan, "done": done}))
        logging.log_every_n_seconds(logging.INFO, "encoded %d of %d", 10, done, total)
    return arrays


def finish(folder: pathlib.Path, name: str, header: Mapping[str, Any]) -> None:
    """Write the header, with which a folder is whole."""
    atomic_write(folder / name, json.dumps(header, indent=2) + "\n")
    (folder / PROGRESS).unlink(missing_ok=True)


def half(values: np.ndarray) -> np.ndarray:
    """Finite numbers as float16, those beyond its range at its end."""
    return np.clip(values, -LARGEST, LARGEST).astype(np.float16)


def _begun(folder: pathlib.Path, plan: Mapping[str, Any]) -> int:
    """How many rows of this plan are there already."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        found = {path.name for path in folder.iterdir()}
    except OSError as e:
        raise UserError("out", str(folder), f"cannot be a folder for a cache: {e.strerror}") from e
    if not found:
        atomic_write(folder / PROGRESS, json.dumps({"plan": plan, "done": 0}))
        return 0
    if PROGRESS not in found:
        raise UserError("out", str(folder), "is not empty, and not the beginning of a cache; give a new folder")
    try:
        state = untrusted.read_json(folder / PROGRESS)
        begun, done = state["plan"], state["done"]
    except (untrusted.Unreadable, TypeError, LookupError) as e:
        raise UserError("out", str(folder / PROGRESS), f"is damaged: {e}; delete the folder") from e
    if begun != plan:
        named = [name for name in plan if begun.get(name) != plan[name]] if isinstance(begun, dict) else []
        what = f"holds the beginning of another cache ({', '.join(named)} differ); give the same flags or a new folder"
        raise UserError("out", str(folder), what)
    return int(done)


def _opened(path: pathlib.Path, shape: tuple[int, ...], dtype: Any, new: bool) -> Any:
    try:
        if new:
            return np.lib.format.open_memmap(path, "w+", dtype, shape)
        found = np.lib.format.open_memmap(path, "r+")
    except (OSError, ValueError) as e:
        raise UserError("out", str(path), f"cannot be written or is damaged: {e}") from e
    if found.shape != shape or found.dtype != dtype:
        raise UserError("out", str(path), "is not what was begun there; delete the folder")
    return found
