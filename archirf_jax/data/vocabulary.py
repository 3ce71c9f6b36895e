"""A tokenizer of whole words, made of the captions of a set itself."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

from archirf_jax import untrusted
from archirf_jax.data.tokenizer import FILE, Tokenizer, of_run, read
from archirf_jax.errors import UserError

PADDING, UNKNOWN = "[PAD]", "[UNK]"  # ids 0 and 1
CONFIG = "config.json"  # of the run of a text encoder


def of_words(texts: Sequence[str], length: int | None = None) -> Tokenizer:
    """A tokenizer whose vocabulary is the lower-case words and signs of these texts, in the order of the alphabet.

    Args:
        texts: N of them.
        length: tokens of a text; None = as many as the longest of these has.

    Returns:
        Its content is a tokenizer.json that says length and padding too.
    """
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, normalizers, pre_tokenizers

    normal, cut = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()]), pre_tokenizers.Whitespace()
    rows = [[word for word, _ in cut.pre_tokenize_str(normal.normalize_str(text))] for text in texts]
    words = sorted({word for row in rows for word in row})
    length = length or max(1, max(map(len, rows), default=1))
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys((PADDING, UNKNOWN, *words)))}
    backend: Any = Backend(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    backend.normalizer, backend.pre_tokenizer = normal, cut
    backend.enable_padding(length=length, pad_id=0, pad_token=PADDING)
    return Tokenizer(backend.to_str(), length, pad_id=0)


def opened(place: pathlib.Path, field: str, length: int | None = None, pad_id: int | None = None) -> Tokenizer:
    """The tokenizer of a file, or of the run of a text encoder.

    Args:
        place: tokenizer.json, or a folder that holds it.
        field: of the configuration, for messages.
        length: tokens of a text; None = as the file or the run says.
        pad_id: fills shorter texts; None = likewise.

    Raises:
        UserError: there is no such file, it is damaged, or it does not say how long texts are.
    """
    if (place / CONFIG).is_file() and (group := _group(place)) is not None:
        return of_run(place, group, length)
    path = place / FILE if place.is_dir() else place
    if not path.is_file():
        raise UserError(f"{field}.tokenizer", str(path), f"is not there; name a {FILE}, or the run of a text encoder")
    known = _padding(path)
    length = length or known.get("length")
    if length is None:
        read(path, length=1, pad_id=0)  # a damaged file is named first
        what = f"is missing; {str(path)!r} does not say how many tokens a text has"
        raise UserError(f"{field}.length", message=what)
    return read(path, length, known.get("pad_id") if pad_id is None else pad_id)


def _group(run: pathlib.Path) -> Any:
    """The group `tokenizer` of the configuration of a text encoder's run; None where it has none."""
    try:
        values = untrusted.read_json(run / CONFIG)
    except untrusted.Unreadable as e:
        raise UserError("tokenizer", str(run / CONFIG), f"is damaged: {e}") from e
    return values.get("tokenizer") if isinstance(values, dict) else None


def _padding(path: pathlib.Path) -> dict[str, Any]:
    """Length and id of padding that a tokenizer.json says; {} where it does not, or cannot be read."""
    try:
        found = untrusted.read_json(path)
        padding = found["padding"]
        strategy = padding["strategy"]
        known = {"pad_id": padding["pad_id"]} | ({"length": strategy["Fixed"]} if isinstance(strategy, dict) else {})
    except (untrusted.Unreadable, KeyError, TypeError):
        return {}
    return {name: value for name, value in known.items() if isinstance(value, int) and value >= 0}
