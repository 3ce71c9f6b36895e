"""Things by name: a file in a room is a choice, and what it calls `build` makes it. A new choice is a new file."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from archirf_jax.errors import UserError, nearest


def names(room: ModuleType) -> list[str]:
    """The modules of `room` that can be built, by file name."""
    found = [module.name for module in pkgutil.iter_modules(room.__path__) if not module.ispkg]
    return [name for name in found if hasattr(importlib.import_module(f"{room.__name__}.{name}"), "build")]


def build(room: ModuleType, field: str, name: str, fields: Mapping[str, Any] | None = None) -> Any:
    """`room.name.build(**fields)`.

    Args:
        room: the package to look in, such as `archirf_jax.models`.
        field: the config's name for this choice, such as "model", for messages.
        name: the module's name.
        fields: keyword arguments of its `build`.

    Raises:
        UserError: no such module, or a field that its `build` does not have.
    """
    allowed = names(room)
    if name not in allowed:
        raise UserError(f"{field}.name: {name!r} is not one of {', '.join(allowed)}{nearest(name, allowed)}")
    make = importlib.import_module(f"{room.__name__}.{name}").build
    known = [parameter for parameter in inspect.signature(make).parameters if parameter not in ("parent", "name")]
    for given in fields or {}:
        if given not in known:
            has = ", ".join(known)
            raise UserError(f"{field}.{given}: {name} has no such field; it has {has}{nearest(given, known)}")
    return make(**(fields or {}))
