"""One text as several frozen encoders see it, their tokens joined along the channels (Podell et al. 2023, Sec. 2.1).

Tokens of further encoders may follow those, all filled up with zeros to one width (Esser et al. 2024, Sec. 4).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
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
        parts: conditioners by name; each reads "ids" and "mask" of the batch with its own prefix. P is the sum of the
            widths of "pooled" of those which give one.
        following: those of the parts whose tokens follow the others'; L is the sum of the lengths.
        width: D, to which tokens are filled up with zeros; None = the sum of the widths of the parts that are joined.
        zeros: tokens of zeros at the end, in place of an encoder that is left out.
    """

    parts: Mapping[str, Text]
    following: tuple[str, ...] = ()
    width: int | None = None
    zeros: int = 0

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
        def each(key: str, names: Sequence[str]) -> list[jax.Array]:
            owned = [(name, f"{self.parts[name].prefix}{key}") for name in names]
            return [made[name][own] for name, own in owned if own in made[name]]

        first = [name for name in self.parts if name not in self.following]
        tokens = [jnp.concatenate(each("tokens", first), axis=-1), *each("tokens", self.following)]
        masks = [each("mask", first)[0], *each("mask", self.following)]
        if self.zeros:
            tokens.append(jnp.zeros((*tokens[0].shape[:-2], self.zeros, 1)))
            masks.append(jnp.ones((*masks[0].shape[:-1], self.zeros), bool))
        width = self.width or tokens[0].shape[-1]
        filled = [_filled(rows, width) for rows in tokens]
        found = {"tokens": jnp.concatenate(filled, axis=-2), "mask": jnp.concatenate(masks, axis=-1)}
        pooled = each("pooled", list(self.parts))
        return found | ({"pooled": jnp.concatenate(pooled, axis=-1)} if pooled else {})


def _filled(tokens: jax.Array, width: int) -> jax.Array:
    """Tokens (..., L, D) with zeros up to `width`."""
    more = width - tokens.shape[-1]
    if more < 0:
        what = f"is below the {tokens.shape[-1]} channels that encoders give"
        raise UserError("conditioners.text.width", width, what)
    return jnp.pad(tokens, [(0, 0)] * (tokens.ndim - 1) + [(0, more)])


def build(
    runs: Mapping[str, Any],
    parts: Mapping[str, Any],
    following: tuple[str, ...] = (),
    width: int | None = None,
    zeros: int = 0,
) -> JoinedTexts:
    """The conditioner of several frozen runs.

    Args:
        runs: the frozen runs, by name.
        parts: name of a run -> the fields of the conditioner `text` but `run`; `prefix` is the name and "_" unless
            given.
        following, width, zeros: as of `JoinedTexts`.

    Raises:
        UserError: no parts to join, parts to join of different lengths, or an unknown one that follows; otherwise as of
            `text.build`.
    """
    joined = [name for name in parts if name not in following]
    if not joined:
        raise UserError("conditioners.text.parts", message="must name one frozen text encoder or more")
    if unknown := [name for name in following if name not in parts]:
        raise UserError("conditioners.text.following", unknown[0], f"is not one of the parts, {', '.join(parts)}")
    made = {name: text.build(runs, run=name, **{"prefix": f"{name}_", **fields}) for name, fields in parts.items()}
    lengths = {name: len(made[name].empty) for name in joined}
    if len(set(lengths.values())) > 1:
        what = "must have equally many tokens, to be joined along the channels; give each the same length"
        raise UserError("conditioners.text.parts", lengths, what)
    return JoinedTexts(made, following, width, zeros)
