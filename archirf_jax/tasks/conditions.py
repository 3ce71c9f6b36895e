"""Conditions from a file: what a network takes beside labels, one row each, and their unconditional twins."""

from __future__ import annotations

import pathlib
import zipfile
from typing import Any

import jax.numpy as jnp
import numpy as np

from archirf_jax.errors import UserError
from archirf_jax.tasks.diffusion import Diffusion

NO_ARCHIVE = (OSError, ValueError, KeyError, EOFError, TypeError, AttributeError, zipfile.BadZipFile)


def read(path: pathlib.Path, task: Diffusion, needs_null: bool) -> tuple[Any, Any]:
    """(tables with a row a condition, their null row), both shaped like `task.example`.

    Args:
        path: .npz file with an array for each name of the example, and null_NAME for its twin.
        task: whose network takes conditions.
        needs_null: whether the twins must be there; one that is not is 0.

    Raises:
        UserError: no such file, or an array that is missing or that the network does not take.
    """
    names = sorted(task.example)
    try:
        with np.load(path, allow_pickle=False) as archive:
            found = {name: archive[name] for name in archive.files}
        rows = {name: _checked(name, found[name], task) for name in names}
    except NO_ARCHIVE as e:
        if isinstance(e, UserError):
            raise
        raise UserError(f"--conditions: {str(path)!r} is no .npz file with {', '.join(names)}: {e}") from e
    if len({len(table) for table in rows.values()}) != 1 or not len(rows[names[0]]):
        counts = ", ".join(f"{name} {len(table)}" for name, table in rows.items())
        raise UserError(f"--conditions: {str(path)!r} must have equally many rows of each, not {counts}")
    absent = [f"null_{name}" for name in names if f"null_{name}" not in found]
    if absent and needs_null:
        raise UserError(
            f"--conditions: guidance needs {', '.join(absent)} beside the rows, shaped like one row; add them, or "
            "sample with --guidance_scale=1"
        )
    null = {name: _null(name, found.get(f"null_{name}"), table) for name, table in rows.items()}
    return rows, null


def _checked(name: str, table: np.ndarray, task: Diffusion) -> jnp.ndarray:
    """(rows, ...) of the example's type; only the last axis has the example's length."""
    example = task.example[name]
    label = jnp.issubdtype(example.dtype, jnp.integer)
    kinds, width = ("iu", ()) if label else ("biuf", example.shape[-1:])
    if table.dtype.kind not in kinds:
        raise UserError(f"--conditions: {name} holds {table.dtype}, not {'integers' if label else 'numbers'}")
    if table.ndim != example.ndim + 1 or table.shape[table.ndim - len(width) :] != width:
        between = ["any"] * (example.ndim - len(width))
        expected = ", ".join(map(str, ["rows", *between, *width]))
        raise UserError(f"--conditions: {name} has the shape {table.shape}; this network takes ({expected})")
    if not np.all(np.isfinite(table)):
        raise UserError(f"--conditions: {name} holds nan or infinity")
    if label and table.size and not 0 <= table.min() <= table.max() <= task.null:
        wrong = table.min() if table.min() < 0 else table.max()
        raise UserError(f"--conditions: {name} {wrong} is out of range; this run has 0-{task.null - 1}")
    return jnp.asarray(table.astype(example.dtype))


def _null(name: str, given: np.ndarray | None, table: jnp.ndarray) -> jnp.ndarray:
    if given is None:
        return jnp.zeros_like(table[0])
    if given.shape != table.shape[1:] or given.dtype.kind not in "biuf":
        raise UserError(
            f"--conditions: null_{name} is {given.dtype} of shape {given.shape}; it must be like one row of {name}, "
            f"{table.shape[1:]}"
        )
    return jnp.asarray(given.astype(table.dtype))
