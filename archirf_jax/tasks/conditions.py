"""Conditions from a file: fields of a batch that no data set gives, one row an image, and what stands for none."""

from __future__ import annotations

import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from archirf_jax import untrusted
from archirf_jax.conditioners.given import Given
from archirf_jax.conditioners.label import Label
from archirf_jax.contracts import Batch, Condition
from archirf_jax.errors import UserError
from archirf_jax.tasks.diffusion import Diffusion

FIELD = "conditions"
NULL = "null_"


def read(path: pathlib.Path, task: Diffusion, needs_null: bool) -> tuple[Batch, Condition]:
    """(fields with a row an image, what stands for none).

    Args:
        path: .npz file with an array for each field that the conditions are made of, and null_NAME for its null.
        task: whose network takes conditions.
        needs_null: whether the nulls must be there; one that is absent is 0.

    Raises:
        UserError: no such file, or an array that is missing or that the network does not take.
    """
    found = _arrays(path)
    rows = {name: _checked(name, table, task) for name, table in found.items() if not name.startswith(NULL)}
    if len({len(table) for table in rows.values()}) != 1 or not len(next(iter(rows.values()))):
        counts = ", ".join(f"{name} {len(table)}" for name, table in rows.items()) or "nothing"
        raise UserError(FIELD, str(path), f"must have equally many rows of each field, not {counts}")
    _check_complete(path, rows, task)
    droppable = sorted(task.null_names & rows.keys())
    absent = [f"{NULL}{name}" for name in droppable if f"{NULL}{name}" not in found]
    if absent and needs_null:
        what = f"lacks {', '.join(absent)}, each like one row, which guidance needs; or set the guidance scale to 1"
        raise UserError(FIELD, str(path), what)
    return rows, {name: _null(name, found.get(f"{NULL}{name}"), rows[name]) for name in droppable}


def beside(path: pathlib.Path | None, task: Diffusion, batch: Batch) -> Batch:
    """A batch of texts (N, ...) with the fields of a file that the network takes besides.

    Args:
        path: .npz file with arrays (N, ...), a row a text, or (1, ...), one for all; None = there is no file.
        task: whose network takes conditions.
        batch: the fields of the texts.

    Raises:
        UserError: as of `read`, or fields that the texts decide.
    """
    count = len(next(iter(batch.values())))
    found = {} if path is None else _arrays(path)
    wrong = [name for name in found if name in batch or name.startswith(NULL)]
    if wrong:
        raise UserError(FIELD, str(path), f"holds {wrong[0]}, which the prompts decide; leave it out")
    rows = {name: _checked(name, table, task) for name, table in found.items()}
    for name, table in rows.items():
        if len(table) not in (1, count):
            what = f"holds {len(table)} rows of {name}; it must hold one, or one for each of the {count} prompts"
            raise UserError(FIELD, str(path), what)
    batch = batch | {name: jnp.broadcast_to(table, (count, *table.shape[1:])) for name, table in rows.items()}
    if path is not None:
        _check_complete(path, batch, task)
    elif lacking := _traced(task, batch).missing:
        raise UserError(
            FIELD, message=f"is missing: an .npz file with {lacking}, which this network takes besides texts"
        )
    return batch


def _arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        return untrusted.read_arrays(path)
    except untrusted.Unreadable as e:
        raise UserError(FIELD, str(path), f"is not an .npz file of arrays: {e}") from e


class _Traced(NamedTuple):
    missing: str | None
    made: Condition


def _traced(task: Diffusion, rows: Batch) -> _Traced:
    """Shapes of the conditions that are made of rows, or the field that they lack."""
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), len(next(iter(rows.values())))))
    try:
        return _Traced(None, jax.eval_shape(task.conditioner, task.frozen_shapes, rows, keys))
    except KeyError as e:
        return _Traced(str(e.args[0]), {})


def _check_complete(path: pathlib.Path, rows: Batch, task: Diffusion) -> None:
    parts = task.conditioner.parts.values()
    handed = {name for part in parts if isinstance(part, Given) for name in part.shapes}
    handed |= {"label" for part in parts if isinstance(part, Label)}
    if lacking := sorted(handed - rows.keys()):
        raise UserError(FIELD, str(path), f"lacks {', '.join(lacking)}, which this network is conditioned on")
    found = _traced(task, rows)
    if found.missing:
        what = f"lacks {found.missing}; conditions are made of {', '.join(sorted(task.needs))}"
        raise UserError(FIELD, str(path), what)
    unused = rows.keys() - task.needs
    if unused or not found.made:
        what = f"holds {', '.join(sorted(unused))}, which conditions are not made of; they are made of "
        raise UserError(FIELD, str(path), what + ", ".join(sorted(task.needs)))


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
    if not untrusted.finite(table):
        raise UserError(FIELD, name, "holds nan, or infinity as float32")
    _check_range(name, table, task)
    classes = task.num_classes
    if label and table.size and not 0 <= table.min() <= table.max() <= classes:
        wrong = table.min() if table.min() < 0 else table.max()
        raise UserError(FIELD, name, f"{wrong} is out of range; this run has 0-{classes - 1}")
    return jnp.asarray(table.astype(example.dtype))


def _check_range(name: str, table: np.ndarray, task: Diffusion) -> None:
    """Raise a UserError for a number that the network does not know, such as one beyond a table of it."""
    ranges: dict[str, tuple[float, float]] = getattr(task.model, "condition_ranges", dict)()
    low, high = ranges.get(name, (-np.inf, np.inf))
    if table.size and not low <= table.min() <= table.max() <= high:
        wrong = table.min() if table.min() < low else table.max()
        raise UserError(FIELD, name, f"{wrong:g} is out of range; this network takes {low:g} to {high:g}")


def _null(name: str, given: np.ndarray | None, table: Any) -> jnp.ndarray:
    if given is None:
        return jnp.zeros_like(table[0])
    if given.shape != table.shape[1:] or given.dtype.kind not in "biuf":
        what = f"is {given.dtype} of shape {given.shape}; it must be like one row of {name}, {table.shape[1:]}"
        raise UserError(FIELD, f"null_{name}", what)
    if not untrusted.finite(given):
        raise UserError(FIELD, f"null_{name}", "holds nan, or infinity as float32")
    return jnp.asarray(given.astype(table.dtype))
