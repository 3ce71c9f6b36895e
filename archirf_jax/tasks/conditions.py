"""Conditions from a file: fields of a batch that no data set gives, one row an image, and what stands for none."""

from __future__ import annotations

import pathlib
import zipfile
from typing import Any

import jax.numpy as jnp
import numpy as np

from archirf_jax.contracts import Batch, Condition
from archirf_jax.errors import UserError
from archirf_jax.tasks.diffusion import Diffusion

FIELD = "conditions"
NO_ARCHIVE = (OSError, ValueError, KeyError, EOFError, TypeError, AttributeError, zipfile.BadZipFile)


def read(path: pathlib.Path, task: Diffusion, needs_null: bool) -> tuple[Batch, Condition]:
    """(fields with a row an image, what stands for none).

    Args:
        path: .npz file with an array for each field that the conditions are made of, and null_NAME for its null.
        task: whose network takes conditions.
        needs_null: whether the nulls must be there; one that is absent is 0.

    Raises:
        UserError: no such file, or an array that is missing or that the network does not take.
    """
    names = sorted(task.needs)
    try:
        with np.load(path, allow_pickle=False) as archive:
            found = {name: archive[name] for name in archive.files}
        rows = {name: _checked(name, found[name], task) for name in names}
    except NO_ARCHIVE as e:
        if isinstance(e, UserError):
            raise
        raise UserError(FIELD, str(path), f"is not an .npz file with {', '.join(names)}: {e}") from e
    if len({len(table) for table in rows.values()}) != 1 or not len(rows[names[0]]):
        counts = ", ".join(f"{name} {len(table)}" for name, table in rows.items())
        raise UserError(FIELD, str(path), f"must have equally many rows of each, not {counts}")
    droppable = [name for name in names if name in task.null_names]
    absent = [f"null_{name}" for name in droppable if f"null_{name}" not in found]
    if absent and needs_null:
        what = (
            f"lacks {', '.join(absent)}, each like one row, which guidance needs; or sample with a guidance scale of 1"
        )
        raise UserError(FIELD, str(path), what)
    null = {name: _null(name, found.get(f"null_{name}"), rows[name]) for name in droppable}
    return rows, null


def _checked(name: str, table: np.ndarray, task: Diffusion) -> jnp.ndarray:
    """(rows, ...) of the example's type; only the last axis has the example's length."""
    example = task.condition_shapes.get(name)
    if example is None:
        return jnp.asarray(table)
    label = jnp.issubdtype(example.dtype, jnp.integer)
    kinds, width = ("iu", ()) if label else ("biuf", example.shape[1:][-1:])
    if table.dtype.kind not in kinds:
        raise UserError(FIELD, name, f"holds {table.dtype}, not {'integers' if label else 'numbers'}")
    if table.ndim != len(example.shape) or table.shape[table.ndim - len(width) :] != width:
        between = ["any"] * (len(example.shape) - 1 - len(width))
        expected = ", ".join(map(str, ["rows", *between, *width]))
        raise UserError(FIELD, name, f"has the shape {table.shape}; this network takes ({expected})")
    if not np.all(np.isfinite(table)):
        raise UserError(FIELD, name, "holds nan or infinity")
    classes = task.num_classes
    if label and table.size and not 0 <= table.min() <= table.max() <= classes:
        wrong = table.min() if table.min() < 0 else table.max()
        raise UserError(FIELD, name, f"{wrong} is out of range; this run has 0-{classes - 1}")
    return jnp.asarray(table.astype(example.dtype))


def _null(name: str, given: np.ndarray | None, table: Any) -> jnp.ndarray:
    if given is None:
        return jnp.zeros_like(table[0])
    if given.shape != table.shape[1:] or given.dtype.kind not in "biuf":
        what = f"is {given.dtype} of shape {given.shape}; it must be like one row of {name}, {table.shape[1:]}"
        raise UserError(FIELD, f"null_{name}", what)
    return jnp.asarray(given.astype(table.dtype))
