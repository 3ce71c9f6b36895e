"""Prompts: texts that a run draws, as the fields of a batch that its conditions are made of."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from archirf_jax.contracts import Batch
from archirf_jax.data import tokenizer, vocabulary
from archirf_jax.data.captions import KIND
from archirf_jax.data.fields.caption import IDS, MASK
from archirf_jax.data.tokenizer import Tokenizer
from archirf_jax.errors import UserError
from archirf_jax.launch.runs import Run

FIELD = "prompt"
TEXT = "text"  # the conditioner that has a frozen encoder


def read(path: pathlib.Path) -> list[str]:
    """The lines of a file, one prompt each; empty ones are left out.

    Raises:
        UserError: it cannot be read, or holds no line.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as e:
        raise UserError("prompts", str(path), f"is not a file of text, one prompt a line: {e}") from e
    if not any(lines):
        raise UserError("prompts", str(path), "holds no prompt; write one a line")
    return [line for line in lines if line]


def batch_of(run: Run, prompts: Sequence[str]) -> Batch:
    """Ids and masks (N, L) of N texts, under the names that the run's conditioners read.

    Raises:
        UserError: the run takes no text.
    """
    found: Batch = {}
    for prefix, known in _tokenizers(run):
        found |= {f"{prefix}{name}": jnp.asarray(array) for name, array in known(list(prompts)).items()}
    if not found:
        needs = ", ".join(sorted(run.task.needs)) or "nothing"  # type: ignore[attr-defined]
        raise UserError(FIELD, prompts[0], f"is for a run with text; this one is conditioned on {needs}")
    return {name: array for name, array in found.items() if name in run.task.needs}  # type: ignore[attr-defined]


def check_tokenizer(config: Any, known: Tokenizer | None, runs: Mapping[str, Run]) -> None:
    """Raise a UserError if captions became tokens by another tokenizer than that of the frozen encoder of texts."""
    for group in config.conditioners.values():
        run = runs.get(group.get("run", TEXT))
        if known is None or run is None or group.get("name") != TEXT or group.get("prefix"):
            continue
        if run.config.tokenizer.digest != known.file_digest:
            what = f"is not the tokenizer of the text encoder; name its run, {str(run.directory)!r}"
            raise UserError("data.fields.caption.tokenizer", known.place, what)


def _tokenizers(run: Run) -> Iterator[tuple[str, Tokenizer]]:
    """The prefix of keys and the tokenizer of each text that conditions are made of."""
    for group in run.config.conditioners.values():
        if group.get("name") == TEXT:
            encoder = run.runs[group.get("run", TEXT)]
            of_encoder = tokenizer.of_run(encoder.directory, encoder.config.tokenizer, group.get("length"))
            yield group.get("prefix", ""), of_encoder
    if {IDS, MASK} <= run.task.needs:  # type: ignore[attr-defined]
        for name, options in run.config.data.get("fields", {}).items():
            if options.get("name") == KIND and options.get("tokenizer"):
                place = pathlib.Path(options.tokenizer)
                about = f"data.fields.{name}"
                yield "", vocabulary.opened(place, about, options.get("length"), options.get("pad_id"))
