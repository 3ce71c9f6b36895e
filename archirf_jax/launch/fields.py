"""The fields that every configuration has, with their types and ranges; configs/default.py says what they mean.

Fields of the groups in FREE_GROUPS belong to whatever is chosen there, which checks them itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from archirf_jax.errors import UserError

# Here a configuration may have fields that configs/default.py does not list: those of the chosen file.
FREE_GROUPS = (
    *("model", "process", "objective", "first_stage", "conditioners", "frozen", "networks"),
    *("data.fields", "sample.solver", "sample.grid", "sample.guidance"),
)
GROUPS = ("data", "conditioners", "frozen", "networks", "data.fields")
HOLD_GROUPS = ("conditioners", "networks", "data.fields")
NAMED = ("model", "process", "objective", "first_stage", "sample.solver", "sample.grid", "sample.guidance")
INT32 = 2**31 - 1
BELOW_ONE = 0.9999999  # the largest that is below 1 as a float32
LARGEST = 3.4028234e38  # float32
WORDS = {int: "an integer", float: "a number", bool: "true or false", str: "text", tuple: "a list such as (0.2, 0.8)"}


@dataclasses.dataclass(frozen=True)
class Field:
    """What a field may hold.

    Attributes:
        kind: int, float, bool, str or tuple (of numbers).
        low: smallest number; None where the room that uses the field checks it.
        high: largest number.
        optional: whether it may be None.
        later: whether runs that were saved before the field existed lack it; there it is None.
    """

    kind: type
    low: float | None = None
    high: float | None = None
    optional: bool = False
    later: bool = False


FIELDS: dict[str, Field] = {
    "task": Field(str),
    "seed": Field(int, 0, INT32),
    "steps": Field(int, 1, INT32),
    "batch_size": Field(int, 1, 10_000_000),
    "accumulation": Field(int, 1, 1_000_000),
    "steps_per_dispatch": Field(int, 1, 100_000),
    "init_from": Field(str, optional=True),
    "data.name": Field(str),
    "data.dir": Field(str),
    "data.split": Field(str),
    "data.label_key": Field(str, optional=True),
    "data.image_size": Field(int, 1, 16_384),
    "data.channels": Field(int, 1, 4096),
    "data.num_classes": Field(int, 1, 10_000_000, optional=True),
    "data.value_range": Field(tuple, optional=True),
    "data.crop": Field(str, optional=True, later=True),
    "data.buckets": Field(tuple, optional=True, later=True),
    "data.flip": Field(bool),
    "data.device_cache_mib": Field(int, 0, INT32),
    "data.skip_unreadable": Field(bool),
    "optimizer.name": Field(str),
    "optimizer.learning_rate": Field(float, 0, LARGEST),
    "optimizer.b1": Field(float, 0, BELOW_ONE),
    "optimizer.b2": Field(float, 0, BELOW_ONE),
    "optimizer.eps": Field(float, 1e-30, LARGEST),
    "optimizer.moment_dtype": Field(str),
    "optimizer.muon_momentum": Field(float, 0, BELOW_ONE),
    "optimizer.weight_decay": Field(float, 0, LARGEST),
    "optimizer.weight_decay_mask": Field(str),
    "optimizer.clip_norm": Field(float, optional=True),
    "schedule.name": Field(str),
    "schedule.warmup_steps": Field(int, 0, INT32),
    "schedule.reference_steps": Field(int, 1, INT32),
    "ema.decay": Field(float, 0, BELOW_ONE),
    "ema.more_decays": Field(tuple),
    "ema.sigma_rel": Field(tuple),
    "ema.snapshot_steps": Field(int, 1, INT32),
    "guard.patience": Field(int, high=INT32),
    "guard.jump": Field(float, optional=True),
    "mesh.data": Field(int, 1, 1_000_000, optional=True),
    "mesh.fsdp": Field(int, 1, 1_000_000),
    "log.every_steps": Field(int, 1, INT32),
    "log.tensorboard": Field(bool),
    "checkpoint.every_steps": Field(int, 1, INT32),
    "checkpoint.keep": Field(int, 1, INT32),
    "checkpoint.keep_best": Field(int, 0, INT32),
    "checkpoint.best_metric": Field(str),
    "checkpoint.keep_every": Field(int, 1, INT32, optional=True),
    "checkpoint.required": Field(bool),
    "sample.every_steps": Field(int, 1, INT32),
    "sample.classes": Field(int, 1, 10_000),
    "sample.per_class": Field(int, 1, 10_000),
    "sample.steps": Field(int, 1, 1_000_000),
    "sample.threshold": Field(str, optional=True),
    "sample.hoist": Field(bool, later=True),
}
# An imported run has no data set and no training; these it has.
ALWAYS = ("task", "data.image_size", "data.channels", "data.num_classes")


def leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of every field below `config`."""
    for name, value in config.items():
        if hasattr(value, "items"):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def is_free(field: str) -> bool:
    """Whether the field lies in a group with fields of the chosen file."""
    return field.startswith(tuple(f"{group}." for group in FREE_GROUPS))


def check(config: Any) -> None:
    """Check types and ranges of what no room checks itself, and that all numbers are finite.

    Raises:
        UserError: names the first field that is missing or outside its range.
    """
    values = dict(leaves(config))
    _check_groups(config, (*GROUPS, *NAMED))
    for name, value in values.items():
        _check_finite(name, value)
    for name, field in FIELDS.items():
        if name not in values:
            raise UserError(name, message="is missing")
        check_value(name, values[name], field)
    for name, value in values.items():
        group, _, own = name.partition(".")
        field_of_run = FIELDS.get(own.partition(".")[2]) if group == "networks" else None
        if field_of_run:
            check_value(name, value, field_of_run)


def check_saved(values: Mapping[str, Any]) -> None:
    """Check what was read from a run directory: of a training every field, of imported weights those that they have.

    Raises:
        UserError: names the first field that is missing or outside its range.
    """
    trained, found = not values.keys().isdisjoint(("steps", "optimizer")), dict(leaves(values))
    _check_groups(values, ("data", "model"))
    _check_groups(values, (*GROUPS, *NAMED), complete=trained)
    for name, field in FIELDS.items():
        if name in found:
            check_value(name, found[name], field)
        elif name in ALWAYS or (trained and not field.later) or any(other.startswith(f"{name}.") for other in found):
            raise UserError(name, message="is missing")


def check_value(name: str, value: Any, field: Field) -> None:
    """Raise a UserError if the value is not of the field's type and range."""
    if value is None and field.optional:
        return
    kinds: dict[type, tuple[type, ...]] = {float: (int, float), tuple: (tuple, list)}
    fits = isinstance(value, kinds.get(field.kind, (field.kind,)))
    if not fits or (isinstance(value, bool) and field.kind is not bool):
        optional = " or None" if field.optional else ""
        raise UserError(name, value, f"must be {WORDS[field.kind]}{optional}")
    _check_finite(name, value)
    for item in value if field.kind is tuple else ():
        if isinstance(item, bool) or not isinstance(item, int | float):
            raise UserError(name, value, "must hold numbers alone")
    if field.low is not None and value < field.low:
        raise UserError(name, value, f"must be {field.low} or more")
    if field.high is not None and value > field.high:
        raise UserError(name, value, f"must be at most {field.high:,}".replace(",", "_"))


def _check_groups(config: Any, groups: Iterable[str], complete: bool = True) -> None:
    """Check that these are groups of fields, and that the choices among them have a name."""
    for group in groups:
        inner: Any = config
        for part in group.split("."):
            inner = inner.get(part) if hasattr(inner, "get") else None
        if inner is None and not complete:
            continue
        if not hasattr(inner, "items"):
            raise UserError(group, inner, "is not a group of fields")
        if group in NAMED and not isinstance(inner.get("name"), str):
            raise UserError(f"{group}.name", inner.get("name"), "must be the name of a file or of a module of your own")
        for name, each in inner.items() if group in HOLD_GROUPS else ():
            if not hasattr(each, "get"):
                raise UserError(f"{group}.{name}", each, "is not a group of fields")
        for name, each in inner.items() if group == "frozen" else ():
            if not isinstance(each, str):
                raise UserError(f"frozen.{name}", each, "must be the directory of a run")


def _check_finite(name: str, value: Any) -> None:
    """Computations are in float32, where larger numbers are infinite."""
    for item in value if isinstance(value, tuple | list) else (value,):
        if isinstance(item, int | float) and not abs(item) <= LARGEST:
            raise UserError(name, value, "must be finite as a float32")
