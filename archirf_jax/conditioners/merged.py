"""Several conditioners as one."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Mapping

import jax

from archirf_jax.contracts import Batch, Condition, Conditioner, Frozen
from archirf_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Merged:
    """The conditions of all parts.

    Attributes:
        parts: conditioners by name; each draws from keys of its own.
    """

    parts: Mapping[str, Conditioner]

    def __call__(self, frozen: Frozen, batch: Batch, keys: jax.Array) -> Condition:
        """The conditions (B, ...) of all parts."""
        merged: Condition = {}
        for name, part in self.parts.items():
            own = jax.vmap(lambda key, name=name: jax.random.fold_in(key, zlib.crc32(name.encode())))(keys)
            merged |= _new(part(frozen, batch, own), merged, name)
        return merged

    def null(self, frozen: Frozen) -> Condition:
        """What stands for no condition, of all parts."""
        merged: Condition = {}
        for part in self.parts.values():
            merged |= part.null(frozen)
        return merged


def _new(made: Condition, merged: Condition, name: str) -> Condition:
    for key in made:
        if key in merged:
            raise UserError(f"conditioners.{name}", message=f"makes {key}, which another conditioner makes too")
    return made
