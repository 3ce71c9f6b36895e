"""One text as several frozen encoders see it, their tokens joined along the channels (Podell et al. 2023, Sec. 2.1)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from archirf_jax.conditioners import text
from archirf_jax.conditioners.text import Text
from archirf_jax.contracts import Batch, Condition, Frozen
from archirf_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class JoinedTexts:
    """Ids of a text for each encoder -> the conditions "tokens" (B, L, D), "mask" (B, L) and maybe "pooled" (B, P).

    Attributes:
        parts: conditioners by name; each reads "ids" and "mask" of the batch with its own prefix. D is the sum of
            their widths, P that of those which give "pooled".
    """

    parts: Mapping[str, Text]

    def __call__(self, frozen: Frozen, batch: Batch, keys: jax.Array) -> Condition:
        """The joined conditions; "tokens", "mask" and "pooled" that the batch holds are taken as given."""
        given = {name: batch[name] for name in ("tokens", "mask", "pooled") if name in batch}
        if "tokens" not in given:
            return self._joined({name: part(frozen, batch, keys) for name, part in self.parts.items()})
        mask = given.get("mask", jnp.ones(given["tokens"].shape[:2], bool)).astype(bool)
        found = {"tokens": given["tokens"].astype(jnp.float32), "mask": mask}
        pooled = any(part.pooled for part in self.parts.values())
        return found | ({"pooled": batch["pooled"].astype(jnp.float32)} if pooled else {})

    def null(self, frozen: Frozen) -> Condition:
        """The condition of no text, without batch axis."""
        return self._joined({name: part.null(frozen) for name, part in self.parts.items()})

    def _joined(self, made: Mapping[str, Condition]) -> Condition:
        def all_of(key: str) -> list[jax.Array]:
            names = [(name, f"{part.prefix}{key}") for name, part in self.parts.items()]
            return [made[name][own] for name, own in names if own in made[name]]

        found = {"tokens": jnp.concatenate(all_of("tokens"), axis=-1), "mask": all_of("mask")[0]}
        pooled = all_of("pooled")
        return found | ({"pooled": jnp.concatenate(pooled, axis=-1)} if pooled else {})


def build(runs: Mapping[str, Any], parts: Mapping[str, Any]) -> JoinedTexts:
    """The conditioner of several frozen runs.

    Args:
        runs: the frozen runs, by name.
        parts: name of a run -> the fields of the conditioner `text` but `run`; `prefix` is the name and "_" unless
            given.

    Raises:
        UserError: no parts, or parts of different lengths; otherwise as of `text.build`.
    """
    if not parts:
        raise UserError("conditioners.text.parts", message="must name one frozen text encoder or more")
    made = {name: text.build(runs, run=name, **{"prefix": f"{name}_", **fields}) for name, fields in parts.items()}
    lengths = {name: len(part.empty) for name, part in made.items()}
    if len(set(lengths.values())) > 1:
        what = "must have equally many tokens, to be joined along the channels; give each the same length"
        raise UserError("conditioners.text.parts", lengths, what)
    return JoinedTexts(made)
