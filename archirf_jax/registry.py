"""Things by name: a file in a room is a choice, and what it calls `build` makes it. A new choice is a new file."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pathlib
import pkgutil
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from archirf_jax.errors import UserError, nearest

REPOSITORY = pathlib.Path(__file__).parents[1]


def names(room: ModuleType) -> list[str]:
    """The modules of `room` that can be built, by file name; those whose packages are not installed among them."""
    found = [module.name for module in pkgutil.iter_modules(room.__path__) if not module.ispkg]
    return [name for name in found if _is_choice(room, name)]


def build(room: ModuleType, field: str, name: str, fields: Mapping[str, Any] | None = None) -> Any:
    """`room.name.build(**fields)`.

    Args:
        room: the package to look in, such as `archirf_jax.models`.
        field: what a configuration calls this choice, such as "config.model.name", for messages.
        name: the module's name.
        fields: keyword arguments of its `build`.

    Raises:
        UserError: no such module, one whose packages are not installed, a field that its `build` does not have, or
            one that it needs and did not get.
    """
    try:
        make = getattr(_module(room, name), "build", None)
    except ImportError as e:
        raise _missing(room, field, name, e) from e
    if make is None:
        allowed = names(room)
        raise UserError(f"{field}: {name!r} is not one of {', '.join(allowed)}{nearest(name, allowed)}")
    group, given = field.rpartition(".")[0], dict(fields or {})
    known = {key: value for key, value in inspect.signature(make).parameters.items() if key not in ("parent", "name")}
    for key in given:
        if key not in known:
            has = ", ".join(known)
            raise UserError(f"{group}.{key}: {name} has no such field; it has {has}{nearest(key, known)}")
    for key, parameter in known.items():
        if parameter.default is parameter.empty and key not in given:
            raise UserError(f"{group}.{key}: {name} needs this field and it has no default")
    return make(**given)


def _module(room: ModuleType, name: str) -> ModuleType | None:
    # Only the chosen file is imported: a choice whose packages are not installed stands in nobody else's way.
    path = f"{room.__name__}.{name}"
    spec = importlib.util.find_spec(path) if name.isidentifier() else None
    return importlib.import_module(path) if spec and spec.submodule_search_locations is None else None


def _is_choice(room: ModuleType, name: str) -> bool:
    try:
        return hasattr(importlib.import_module(f"{room.__name__}.{name}"), "build")
    except ImportError as e:
        _missing(room, "", name, e)
        return True


def _missing(room: ModuleType, field: str, name: str, error: ImportError) -> UserError:
    """What to install; the error itself where a file of our own is at fault."""
    package = (error.name or "").partition(".")[0]
    if package in ("", room.__name__.partition(".")[0]):
        raise error
    if not isinstance(error, ModuleNotFoundError):
        return UserError(f"{field}: {name} does not run with this version of {package}: {error}")
    requirements = f"requirements-{package}.txt"
    what = f"-r {requirements}" if (REPOSITORY / requirements).exists() else package
    return UserError(f"{field}: {name} needs the package {package}, which is not installed; pip install {what}")
