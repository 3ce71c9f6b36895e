"""Names of a package that are imported from its files when they are asked for, and not before."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def getter(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a package.

    Args:
        package: its name.
        homes: public name -> the module that has it, relative to `archirf_jax` or to the package (".heun").
    """

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(homes[name], package), name)

    return find
