"""Choices by name: a file in a room or a module of the user's own has `build`, which makes the choice."""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.util
import inspect
import itertools
import pathlib
import pkgutil
import sys
from collections.abc import Callable, Mapping
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType, SimpleNamespace, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from archirf_jax.errors import UserError, nearest

REPOSITORY = pathlib.Path(__file__).parents[1]
Kind = type | tuple[type, ...] | tuple[str, ...]
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_refused: list[pathlib.Path] = []


def names(room: ModuleType) -> list[str]:
    """The modules of `room` that can be built, by file name; those whose packages are not installed among them."""
    found = [module.name for module in pkgutil.iter_modules(room.__path__) if not module.ispkg]
    return [name for name in found if _is_choice(room, name)]


def describe(room: ModuleType) -> dict[str, str]:
    """The choices of `room` by name, each with the first line of its file's docstring."""
    found = {}
    for name in names(room):
        spec = importlib.util.find_spec(f"{room.__name__}.{name}")
        assert spec is not None and spec.origin is not None, "names lists files"
        # Read and not imported: a choice whose packages are not installed has a docstring too.
        docstring = ast.get_docstring(ast.parse(pathlib.Path(spec.origin).read_text()))
        found[name] = (docstring or "").partition("\n")[0]
    return found


def build(
    room: ModuleType,
    field: str,
    name: str,
    fields: Mapping[str, Any] | None = None,
    *,
    kind: Kind | None = None,
    offered: Mapping[str, Any] | None = None,
) -> Any:
    """`room.name.build(**fields)`.

    Args:
        room: the package to look in, such as `archirf_jax.models`.
        field: what a configuration calls this choice, such as "model.name".
        name: a module of the room, or, with dots, any module that Python finds ("my_lab.my_net").
        fields: keyword arguments of its `build`.
        kind: what it must make: a class, one of several classes, or something with attributes of these names.
        offered: objects that `build` gets if it has parameters of these names; `fields` cannot set them.

    Raises:
        UserError: there is no such module, it lies below a refused directory or its packages are not installed; a
            field that its `build` does not have, one that it needs and did not get, or a value of another type than
            the field's; a result of another kind.
    """
    make, given = _maker(room, field, name), dict(fields or {})
    try:
        parameters = inspect.signature(make).parameters
    except (TypeError, ValueError) as e:
        raise UserError(field, name, "has a `build` that is not a function or class with named parameters") from e
    objects = {key: value for key, value in (offered or {}).items() if key in parameters}
    hidden = {"parent", "name", *(offered or {})}  # the first two are Linen's
    known = {key: value for key, value in parameters.items() if key not in hidden}
    _check_fields(field.rpartition(".")[0], name, known, given)
    for key, value in given.items():
        _check_type(f"{field.rpartition('.')[0]}.{key}", value, _hint(make, known.get(key)))
    made = make(**given, **objects)
    if kind is not None:
        _check_kind(field, name, made, kind)
    return made


def refuse_below(*directories: str | pathlib.Path) -> contextlib.ExitStack:
    """Refuse modules with dotted names that lie below these directories, which hold what others may have written.

    Returns:
        A context manager; the refusal ends when it is closed.
    """
    added = [pathlib.Path(directory).expanduser() for directory in directories]
    _refused.extend(added)
    stack = contextlib.ExitStack()
    for directory in added:
        stack.callback(_refused.remove, directory)
    return stack


def _maker(room: ModuleType, field: str, name: Any) -> Callable[..., Any]:
    if not isinstance(name, str):
        raise UserError(field, name, "must be the name of a file or of a module of your own")
    try:
        module = _own(field, name) if "." in name else _of_room(room, name)
    except ImportError as e:
        raise _missing((name if "." in name else room.__name__), field, name, e) from e
    make = getattr(module, "build", None)
    if make is None and "." in name:
        raise UserError(field, name, "has no `build`; end the file in `build = ` what makes your choice")
    if make is None:
        allowed = names(room)
        raise UserError(field, name, f"is not one of {', '.join(allowed)}{nearest(name, allowed)}")
    return make


def _check_fields(group: str, name: str, known: Mapping[str, inspect.Parameter], given: Mapping[str, Any]) -> None:
    prefix = f"{group}." if group else ""
    plain = {key: value for key, value in known.items() if value.kind not in _VARIADIC}
    takes_any = any(value.kind is inspect.Parameter.VAR_KEYWORD for value in known.values())
    for key, value in given.items():
        if key not in plain and not takes_any:
            has = f"{name} has no such field; it has {', '.join(plain) or 'none'}{nearest(key, plain)}"
            raise UserError(f"{prefix}{key}", value, f"is given, but {has}")
    for key, parameter in plain.items():
        if parameter.default is parameter.empty and key not in given:
            raise UserError(f"{prefix}{key}", message=f"{name} needs this field and it has no default")


def _hint(make: Any, parameter: inspect.Parameter | None) -> Any:
    """The type that a parameter of `make` is declared with; Any where it is not known."""
    if parameter is None or parameter.annotation is parameter.empty:
        return Any
    for owner in getattr(make, "__mro__", (make,)):  # the class that declares it knows the names in it
        module = sys.modules.get(getattr(owner, "__module__", ""))
        with contextlib.suppress(NameError, TypeError, AttributeError, SyntaxError):
            declared = SimpleNamespace(__annotations__={parameter.name: parameter.annotation})
            return get_type_hints(declared, vars(module))[parameter.name]
    return Any


def _check_type(field: str, value: Any, hint: Any) -> None:
    """Raise a UserError if the value is certainly not of the declared type; a list may stand for a tuple."""
    if not _fits(value, hint):
        shown = getattr(hint, "__name__", "") if isinstance(hint, type) else str(hint).replace("typing.", "")
        raise UserError(field, value, f"is not of the type that the field has, {shown}")


def _fits(value: Any, hint: Any) -> bool:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, each) for each in inner)
    if origin is Literal:
        return value in inner
    if (origin or hint) is tuple and inner:
        each = itertools.repeat(inner[0]) if inner[1:] == (...,) else inner
        fits = isinstance(value, tuple | list) and (inner[1:] == (...,) or len(value) == len(inner))
        return fits and all(_fits(item, kind) for item, kind in zip(value, each, strict=False))
    kinds: dict[Any, Any] = {
        **{int: int, float: (int, float), bool: bool, str: str, tuple: (tuple, list)},
        **{dict: Mapping, Mapping: Mapping, type(None): type(None)},
    }
    wanted = kinds.get(origin or hint)
    return wanted is None or isinstance(value, wanted) and (hint is bool or not isinstance(value, bool))


def _check_kind(field: str, name: str, made: Any, kind: Kind) -> None:
    kinds = kind if isinstance(kind, tuple) else (kind,)
    attributes = [each for each in kinds if isinstance(each, str)]
    classes = tuple(each for each in kinds if isinstance(each, type))
    if classes and not isinstance(made, classes):
        expected = " or ".join(each.__name__ for each in classes)
        raise UserError(field, name, f"makes a {type(made).__name__}, which is not a {expected}")
    if absent := [each for each in attributes if not hasattr(made, each)]:
        raise UserError(field, name, f"makes a {type(made).__name__}, which does not have {', '.join(absent)}")


def _of_room(room: ModuleType, name: str) -> ModuleType | None:
    # Only the chosen file is imported: a choice whose packages are not installed does not affect the others.
    path = f"{room.__name__}.{name}"
    spec = importlib.util.find_spec(path) if name.isidentifier() else None
    return importlib.import_module(path) if spec and spec.submodule_search_locations is None else None


def _own(field: str, name: str) -> ModuleType:
    """A module of the user's own. Its place is checked before anything is imported, its parents' files included."""
    path: list[str] | None = None
    for part in name.split("."):
        # By the last part alone: the finder would look for a dotted name's parents among what is imported.
        spec = PathFinder.find_spec(part, path) if part.isidentifier() else None
        if spec is None or (path is not None and not path):
            raise UserError(field, name, "is not a module that Python finds; add its folder to PYTHONPATH")
        _check_place(field, name, spec)
        path = list(spec.submodule_search_locations or ())
    return importlib.import_module(name)


def _check_place(field: str, name: str, spec: ModuleSpec) -> None:
    for directory in _refused if spec.origin else ():
        file = pathlib.Path(spec.origin or "").absolute()
        if file.is_relative_to(directory.absolute()) or file.resolve().is_relative_to(directory.resolve()):
            raise UserError(
                field,
                name,
                f"lies in {str(directory)!r}, whose files are data and are not run; move your code elsewhere",
            )


def _is_choice(room: ModuleType, name: str) -> bool:
    try:
        return hasattr(importlib.import_module(f"{room.__name__}.{name}"), "build")
    except ImportError as e:
        _missing(room.__name__, "", name, e)
        return True


def _missing(home: str, field: str, name: str, error: ImportError) -> UserError:
    """An error that says what to install; the error itself where a file of this package caused it."""
    package = (error.name or "").partition(".")[0]
    if package in ("", home.partition(".")[0]):
        raise error
    if not isinstance(error, ModuleNotFoundError):
        return UserError(field, name, f"does not run with this version of {package}: {error}")
    requirements = f"requirements-{package}.txt"
    what = f"-r {requirements}" if (REPOSITORY / requirements).exists() else package
    return UserError(field, name, f"needs the package {package}, which is not installed; pip install {what}")
