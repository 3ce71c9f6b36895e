"""Configuration files, and what a command line changes of them: --config=FILE:VARIANT --config.FIELD=VALUE."""

from __future__ import annotations

import ast
import importlib.util
import os
import pathlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from archirf_jax.errors import UserError, nearest
from archirf_jax.launch.fields import FIELDS, FREE_GROUPS, WORDS, is_free, leaves

if TYPE_CHECKING:  # slow to import, and a command takes signals first
    import ml_collections

BOOLEANS = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}


def load_file(name: str) -> ml_collections.ConfigDict:
    """The configuration that get_config of "FILE" or "FILE:VARIANT" gives; the file is run once.

    Raises:
        UserError: there is no such file or variant, or the file fails.
    """
    import ml_collections

    file, colon, variant = name.partition(":")
    if not os.path.isfile(file):
        raise UserError("config", file, "is not a file; give one such as configs/dit_rf.py")
    spec = importlib.util.spec_from_file_location(pathlib.Path(file).stem, file)
    if spec is None or spec.loader is None:
        raise UserError("config", file, "is not a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config(*([variant] if colon else []))
    except (Exception, SystemExit) as e:
        said = " ".join(str(e).split())[:200]
        # A ValueError is how a file refuses a variant.
        raise UserError("config", name, said if type(e) is ValueError else f"fails: {type(e).__name__}: {said}") from e
    if not isinstance(config, ml_collections.ConfigDict):
        raise UserError("config", name, "fails: its get_config does not give a ConfigDict")
    return config


def override(config: ml_collections.ConfigDict, changes: Iterable[tuple[str, str]]) -> None:
    """Set fields, in this order.

    Args:
        config: changed in place.
        changes: (dotted name, text of the value). The text is read as the type that the field has; "None" is None where
            that is allowed. In the groups that belong to a chosen file, a field that is not there is added, and its
            text is a Python literal or, if it is none, the text itself.

    Raises:
        UserError: there is no such field, or the value is not of its type.
    """
    for name, text in changes:
        _set(config, name, read(config, name, text))


def read(config: ml_collections.ConfigDict, name: str, text: str) -> Any:
    """The value that the text means for the field `name` of the configuration; raises as `override`."""
    known = dict(leaves(config))
    field, free = FIELDS.get(name), is_free(name) or name in FREE_GROUPS
    if free and all(part.isidentifier() for part in name.split(".")):
        return _read_free(name, text, _get(config, name))
    if any(other.startswith(f"{name}.") for other in known) or (not field and _get(config, name) is not None):
        example = next((other for other in known if other.startswith(f"{name}.")), f"{name}.NAME")
        raise UserError(name, message=f"is a group of fields; set one of them, such as {example}")
    if field is None or name not in known:
        raise UserError(name, text, f"is for a field that does not exist{nearest(name, known)}")
    if text == "None" and field.optional:
        return None
    return _read_as(name, text, field.kind, " or None" if field.optional else "")


def _read_free(name: str, text: str, now: Any) -> Any:
    """A value of a field whose type only the chosen file knows; what stands there now says how to read it."""
    if text == "None":
        return None
    if isinstance(now, bool):
        return _read_as(name, text, bool)
    value = text if isinstance(now, str) else literal(text)
    if isinstance(value, str) and isinstance(now, int | float | tuple | list):
        raise UserError(name, text, f"is not {WORDS.get(type(now), 'a list')}; it is {now!r} without this")
    if hasattr(now, "items") and not isinstance(value, dict):
        example = next((f"{name}.{field}" for field, _ in leaves(now)), f"{name}.name")
        raise UserError(name, message=f"is a group of fields; set one of them, such as {example}")
    return float(value) if isinstance(now, float) and isinstance(value, int) else value


def _read_as(name: str, text: str, kind: type, or_none: str = "") -> Any:
    try:
        if kind is int:
            return int(text, 16 if text.lower().startswith("0x") else 10)
        if kind is float:
            return float(text)
        if kind is bool:
            return BOOLEANS[text.lower()]
        if kind is tuple:
            value = ast.literal_eval(text)
            return tuple(value) if isinstance(value, tuple | list) else (float(value),)
    except (ValueError, KeyError, TypeError, SyntaxError, MemoryError, RecursionError) as e:
        raise UserError(name, text, f"is not {WORDS[kind]}{or_none}") from e
    return text


def literal(text: str) -> Any:
    """A Python literal, with true and false as well; text that is none is itself."""
    try:
        return BOOLEANS[text.lower()] if text.lower() in ("true", "false") else ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return text


def _get(config: Any, name: str) -> Any:
    for part in name.split("."):
        config = config.get(part) if hasattr(config, "get") else None
    return config


def _set(config: ml_collections.ConfigDict, name: str, value: Any) -> None:
    """Set a field, made with its groups where it is not there; keys of groups may hold commas, but no dots."""
    import ml_collections

    *groups, last = name.split(".")
    inner: Any = config
    for group in groups:
        if not hasattr(inner.get(group), "items"):
            with inner.unlocked(), inner.ignore_type():
                inner[group] = ml_collections.ConfigDict()
        inner = inner[group]
    with inner.unlocked(), inner.ignore_type():  # of the whole configuration it takes 3 ms
        try:
            if isinstance(value, dict):
                inner[last] = ml_collections.ConfigDict()
            inner[last] = ml_collections.ConfigDict(value) if isinstance(value, dict) else value
        except (ValueError, TypeError, AttributeError) as e:
            raise UserError(name, value, f"cannot be a group of fields: {e}") from e
