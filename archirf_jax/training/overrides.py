"""The configuration of one network of a run: `config.networks.NAME` overrides the run's own groups field by field."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from archirf_jax.errors import UserError, nearest

GROUPS = ("optimizer", "schedule", "ema", "guard")


def of_network(config: Any, name: str) -> Any:
    """The run's configuration with the groups of `config.networks.NAME` in place of its own.

    Raises:
        UserError: a group or field that does not exist, or a value of another type.
    """
    changes = _changes(config, name)
    if not changes:
        return config
    config = config.copy_and_resolve_references()
    for group, fields in changes.items():
        _check(f"networks.{name}.{group}", group, GROUPS)
        for field, value in fields.items():
            path = f"networks.{name}.{group}.{field}"
            _check(path, field, list(config[group]))
            try:
                config[group][field] = value
            except (TypeError, ValueError) as e:
                raise UserError(path, value, f"has another type than {group}.{field}: {e}") from e
    return config


@contextlib.contextmanager
def naming(config: Any, name: str) -> Iterator[None]:
    """Errors about an overridden field carry the name of the override."""
    try:
        yield
    except UserError as e:
        group, _, field = (e.field or "").partition(".")
        if field not in _changes(config, name).get(group, {}):
            raise
        raise UserError(f"networks.{name}.{e.field}", e.value, e.message) from e


def _changes(config: Any, name: str) -> Any:
    return (config.get("networks") or {}).get(name) or {}


def _check(path: str, name: str, allowed: Any) -> None:
    if name not in allowed:
        message = f"does not exist; there are {', '.join(allowed)}{nearest(name, allowed)}"
        raise UserError(path, message=message)
