"""What a golden case is, and how a runner says that it cannot take one."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import numpy as np


class UnsupportedSource(ValueError):
    """Nothing of this project stands against the case's source, or against one of its settings."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One golden case; arrays are as the reference stored them (images NCHW)."""

    source: str
    hyperparameters: dict[str, Any]
    inputs: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]
    params: dict[str, np.ndarray]


@functools.cache
def programs(model: nn.Module) -> tuple[Any, Any]:
    """Its `init` and `apply`, traced and compiled once for all cases of the network."""
    return jax.jit(model.init), jax.jit(model.apply)


def settings(what: str, given: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """`given` over `defaults`; names that start with _ are the reference's own notes.

    Raises:
        UnsupportedSource: a name without default.
    """
    given = {name: value for name, value in given.items() if not name.startswith("_")}
    for name in given:
        if name not in defaults:
            raise UnsupportedSource(f"unsupported {what} {name!r}; supported: {', '.join(defaults)}")
    return defaults | given


def choice(field: str, value: Any, allowed: dict[Any, Any]) -> Any:
    """What `value` stands for.

    Raises:
        UnsupportedSource: it is not one of `allowed`.
    """
    if isinstance(value, list | dict) or value not in allowed:
        raise UnsupportedSource(f"unsupported {field}: {value!r}; supported: {', '.join(map(repr, allowed))}")
    return allowed[value]
