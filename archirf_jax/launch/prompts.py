"""Prompts: texts that a run draws, as the fields of a batch that its conditions are made of."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from archirf_jax.conditioners.merged import Merged
from archirf_jax.contracts import Batch, Condition, Frozen
from archirf_jax.data import tokenizer, vocabulary
from archirf_jax.data.fields.caption import IDS, KIND, MASK
from archirf_jax.data.tokenizer import Tokenizer
from archirf_jax.errors import UserError
from archirf_jax.launch.runs import Run
from archirf_jax.tasks.drawing import Recording

FIELD = "prompt"
TEXT, JOINED = "text", "joined_texts"  # the conditioners that have frozen encoders


class Prompt(NamedTuple):
    """A text to draw.

    Attributes:
        text: what to draw.
        guidance_scale: of its images; None = as of all others.
        seed: of its noise; None = that of all others, with which each place in the list has noise of its own.
    """

    text: str
    guidance_scale: float | None = None
    seed: int | None = None


def read(path: pathlib.Path) -> list[Prompt]:
    """The prompts of a file, one a line: a text, or a JSON object with "prompt", and "guidance_scale" and "seed".

    Empty lines are left out.

    Raises:
        UserError: it cannot be read, holds no line, or a line is not such an object.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise UserError("prompts", str(path), f"is not a file of text, one prompt a line: {e}") from e
    found = [_prompt(path, number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise UserError("prompts", str(path), "holds no prompt; write one a line")
    return found


def _prompt(path: pathlib.Path, number: int, line: str) -> Prompt:
    if not line.startswith("{"):
        return Prompt(line)
    try:
        given = json.loads(line)
        found = Prompt(given.pop("prompt"), given.pop("guidance_scale", None), given.pop("seed", None))
    except (ValueError, KeyError, RecursionError) as e:
        raise UserError("prompts", str(path), f"line {number} is not a JSON object with a prompt: {e}") from e
    scale, seed = found.guidance_scale, found.seed
    fits = isinstance(found.text, str) and (scale is None or type(scale) in (int, float) and math.isfinite(scale))
    if given or not fits or not (seed is None or type(seed) is int and 0 <= seed < 2**31):
        what = (
            f"line {number} must hold prompt, a text, and may hold guidance_scale, a number, and seed, 0 to 2147483647"
        )
        raise UserError("prompts", str(path), what)
    return found


def null_of(run: Run, text: str) -> Condition:
    """What stands for no condition where guidance is to lead away from a text; without batch axis.

    Raises:
        UserError: as `batch_of`, or conditions are never dropped in training.
    """
    task: Any = run.task
    batch = batch_of(run, [text], field="negative_prompt")
    made, usual = _reader(task)(run.frozen, batch, jax.random.split(jax.random.key(0), 1))
    if not usual:
        raise UserError("negative_prompt", text, "needs a network that was also trained without conditions")
    return {name: made[name][0] if name in made and name != "label" else usual[name] for name in usual}


@functools.cache  # a task lives as long as its programs
def _reader(task: Any) -> Callable[[Frozen, Batch, jax.Array], tuple[Condition, Condition]]:
    """The compiled (frozen, batch, keys) -> (the conditions of a batch of texts, the null conditions)."""

    def read(frozen: Frozen, batch: Batch, keys: jax.Array) -> tuple[Condition, Condition]:
        return _reading(task, batch)(frozen, batch, keys), task.conditioner.null(frozen)

    return jax.jit(read)


def _reading(task: Any, batch: Batch) -> Merged:
    """The conditioners that make conditions of this batch's fields; others need what belongs to each image."""
    keys, found = jax.random.split(jax.random.key(0), 1), {}
    for name, part in task.conditioner.parts.items():
        asked: set[str] = set()
        with contextlib.suppress(KeyError):  # of a field that the batch does not hold
            trace = functools.partial(_ask, part, asked)
            jax.eval_shape(trace, task.frozen_shapes, batch, keys)
        if asked & batch.keys():
            found[name] = part
    return Merged(found)


def _ask(part: Any, asked: set[str], frozen: Frozen, batch: Batch, keys: jax.Array) -> Condition:
    made: Condition = part(frozen, Recording(batch, asked), keys)
    return made


def batch_of(run: Run, prompts: Sequence[str], field: str = FIELD) -> Batch:
    """Ids and masks (N, L) of N texts, under the names that the run's conditioners read.

    Raises:
        UserError: the run takes no text.
    """
    found: Batch = {}
    for prefix, known in _tokenizers(run):
        found |= {f"{prefix}{name}": jnp.asarray(array) for name, array in known(list(prompts)).items()}
    if not found:
        needs = ", ".join(sorted(run.task.needs)) or "nothing"  # type: ignore[attr-defined]
        raise UserError(field, prompts[0], f"is for a run with text; this one is conditioned on {needs}")
    return {name: array for name, array in found.items() if name in run.task.needs}  # type: ignore[attr-defined]


def check_tokenizer(config: Any, known: Tokenizer | None, runs: Mapping[str, Run]) -> None:
    """Raise a UserError if captions became tokens that the encoder of texts, frozen or trained, does not read."""
    own = config.model.get(TEXT)  # of a network that is trained with its encoder
    most = own.get("vocab_size") if hasattr(own, "get") else None
    if known is not None and most is not None and known.largest >= most:
        what = f"must be above {known.largest}, the largest id of the captions' tokenizer"
        raise UserError("model.text.vocab_size", most, what)
    for group in config.conditioners.values():
        run = runs.get(group.get("run", TEXT))
        if known is None or run is None or group.get("name") != TEXT or group.get("prefix"):
            continue
        if run.config.tokenizer.digest != known.file_digest:
            what = f"is not the tokenizer of the text encoder; name its run, {str(run.directory)!r}"
            raise UserError("data.fields.caption.tokenizer", known.place, what)


def _encoders(conditioners: Any) -> Iterator[tuple[str, str, int | None]]:
    """The frozen run, the prefix of keys and the length of each text that frozen encoders read."""
    for group in conditioners.values():
        if group.get("name") == TEXT:
            yield group.get("run", TEXT), group.get("prefix", ""), group.get("length")
        elif group.get("name") == JOINED:
            for run, fields in group.parts.items():
                yield run, fields.get("prefix", f"{run}_"), fields.get("length")


def _tokenizers(run: Run) -> Iterator[tuple[str, Tokenizer]]:
    """The prefix of keys and the tokenizer of each text that conditions are made of."""
    for name, prefix, length in _encoders(run.config.conditioners):
        encoder = run.runs[name]
        yield prefix, tokenizer.of_run(encoder.directory, encoder.config.tokenizer, length)
    if {IDS, MASK} <= run.task.needs:  # type: ignore[attr-defined]
        for name, options in run.config.data.get("fields", {}).items():
            if options.get("name") == KIND and options.get("tokenizer"):
                place = pathlib.Path(options.tokenizer)
                about = f"data.fields.{name}"
                yield "", vocabulary.opened(place, about, options.get("length"), options.get("pad_id"))
