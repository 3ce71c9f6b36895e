"""Texts by a frozen text encoder: states of their tokens, a mask, and a pooled vector.

Several encoders are several conditioners, whose keys have different prefixes: with `prefix="t5_"` a batch has "t5_ids"
and "t5_mask", and the conditions are "t5_tokens" and "t5_mask".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from archirf_jax.contracts import Batch, Condition, Frozen
from archirf_jax.errors import UserError

RUN = "text"  # the frozen run, unless another is named
NULL = "null"  # in place of the encoder's parameters: what it makes of a text without characters


@dataclasses.dataclass(frozen=True)
class Text:
    """Ids and masks of texts, or what an encoder made of them, -> conditions.

    Attributes:
        encoder: a module, (ids (B, L), mask (B, L)) -> "tokens" (B, L, D) and whatever else it knows, by name.
        run: the frozen run with its parameters.
        empty: (L,) ids of a text without characters, as many of them as there are tokens, and padding.
        count: how many of `empty` are tokens.
        tokens: which of the encoder's arrays (B, L, D) is the condition "tokens".
        pooled: which of its arrays (B, P) is the condition "pooled"; None = there is none.
        masked: whether padding is hidden from the encoder and from the network; published networks of Stable
            Diffusion see it.
        null_text: what stands for no text, `null` of `build`.
        prefix: of all keys, in batches and conditions.
    """

    encoder: Any
    run: str
    empty: tuple[int, ...]
    count: int
    tokens: str = "tokens"
    pooled: str | None = None
    masked: bool = True
    null_text: str = "empty"
    prefix: str = ""

    def __call__(self, frozen: Frozen, batch: Batch, keys: jax.Array) -> Condition:
        """{"tokens" (B, L, D) float32, "mask" (B, L) bool, "pooled" (B, P) float32}.

        "tokens" and "pooled" that the batch holds are taken as given; otherwise they are made of its "ids" and "mask".
        """
        del keys
        asked = ("ids", "mask", "tokens", *(["pooled"] if self.pooled else []))
        # Asked for one and all, so that a trace finds everything that conditions may be made of.
        given = {name: batch[self.prefix + name] for name in asked if self.prefix + name in batch}
        if "tokens" not in given:
            ids = batch[f"{self.prefix}ids"]  # raises a KeyError of this name where there is none
            return self._named(self._encoded(frozen, ids, given.get("mask")))
        found = {"tokens": given["tokens"], "mask": self._seen(given["tokens"], given.get("mask"))}
        if self.pooled:
            found["pooled"] = batch[f"{self.prefix}pooled"]
        return self._named(found)

    def null(self, frozen: Frozen) -> Condition:
        """The condition of no text, without batch axis.

        Where texts were encoded beforehand, `frozen[run]` may hold the arrays of the empty one as NULL, and no encoder.
        """
        found = dict(frozen[self.run][NULL] if NULL in frozen[self.run] else self._of_empty(frozen))
        if self.null_text != "empty":
            found = {name: jnp.zeros_like(value) for name, value in found.items()}
            found["mask"] = jnp.full(found["mask"].shape, self.null_text == "zeros")
        return self._named(found)

    def _of_empty(self, frozen: Frozen) -> Condition:
        ids = jnp.asarray([self.empty], jnp.int32)
        mask = jnp.arange(len(self.empty))[None] < self.count
        return {name: value[0] for name, value in self._encoded(frozen, ids, mask).items()}

    def _encoded(self, frozen: Frozen, ids: jax.Array, mask: jax.Array | None) -> Condition:
        mask = self._seen(ids, mask)
        made = self.encoder.apply({"params": frozen[self.run]["model"]}, ids, mask)
        found = {"tokens": self._one(made, "tokens", self.tokens), "mask": mask}
        if self.pooled:
            found["pooled"] = self._one(made, "pooled", self.pooled)
        return found

    def _seen(self, like: jax.Array, mask: jax.Array | None) -> jax.Array:
        return jnp.ones(like.shape[:2], bool) if mask is None or not self.masked else mask.astype(bool)

    def _one(self, made: Mapping[str, jax.Array], field: str, name: str) -> jax.Array:
        axes = {"tokens": 3, "pooled": 2}[field]
        allowed = [each for each, value in made.items() if value.ndim == axes]
        if name not in allowed:
            what = f"is not among what the encoder gives: {', '.join(allowed) or 'nothing of this kind'}"
            raise UserError(f"conditioners.{self.prefix or RUN}.{field}", name, what)
        return made[name]

    def _named(self, found: Mapping[str, jax.Array]) -> Condition:
        kept = {name: value if name == "mask" else value.astype(jnp.float32) for name, value in found.items()}
        return {f"{self.prefix}{name}": value for name, value in kept.items()}


def build(
    runs: Mapping[str, Any],
    run: str = RUN,
    length: int | None = None,
    tokens: str = "tokens",
    pooled: str | None = None,
    masked: bool = True,
    null: Literal["empty", "zeros", "absent"] = "empty",
    prefix: str = "",
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
) -> Text:
    """The conditioner of a frozen run with a text encoder.

    Args:
        runs: the frozen runs, by name.
        run: which of them.
        length: tokens of a text; None = as many as the encoder takes.
        tokens, pooled, masked, prefix: as of `Text`.
        null: what stands for no text: what the encoder makes of one without characters ("empty"), zeros that are
            attended to ("zeros", as SDXL has it), or no token at all ("absent": the mask is False).
        dtype: compute dtype of the encoder; None = that of its run.

    Raises:
        UserError: there is no such run, it is not of a text encoder, or a text is to be longer than it takes.
    """
    if run not in runs:
        what = f"needs the run of a text encoder: --config.frozen.{run}=RUN"
        raise UserError("conditioners.text.run", run, what)
    known = runs[run].config.get("tokenizer")
    if known is None:
        what = "is not the run of a text encoder with a tokenizer; import one by --source=clip-text, t5 or minilm"
        raise UserError(f"frozen.{run}", str(runs[run].directory), what)
    length = known["length"] if length is None else length
    if not len(known["empty"]) < length <= known["length"]:
        what = f"must be above {len(known['empty'])}, and at most the {known['length']} tokens that the encoder takes"
        raise UserError("conditioners.text.length", length, what)
    encoder = runs[run].task.model if dtype is None else runs[run].task.model.clone(dtype=dtype)
    empty = _filled(known["empty"], length, known["pad_id"])
    return Text(encoder, run, empty, len(known["empty"]), tokens, pooled, masked, null, prefix)


def _filled(ids: Sequence[int], length: int, pad_id: int) -> tuple[int, ...]:
    return (*ids, *[pad_id] * (length - len(ids)))
