"""Texts as ids, by the file tokenizer.json of a published text encoder: nothing is ever downloaded.

The file says how a text is cut and which tokens begin and end it; the run of the encoder says the length and what fills
shorter texts.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from archirf_jax import untrusted
from archirf_jax.errors import UserError

FILE = "tokenizer.json"  # of the directory of a text encoder's run
FIELD = "tokenizer"
WHERE = (
    f"is not there; put the {FILE} of the published model beside its weights, or name it by --{FIELD}=FILE when they "
    "are imported"
)


@dataclasses.dataclass(frozen=True, eq=False)
class Tokenizer:
    """Texts -> ids and masks.

    Attributes:
        content: of tokenizer.json.
        length: tokens of every text, with those that begin and end it.
        pad_id: fills shorter texts; None = the last token of an empty text, which ends it.
        place: the file, for messages.
    """

    content: str
    length: int
    pad_id: int | None = None
    place: str = FILE

    def __call__(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Ids and masks of texts; longer ones keep their beginning and the token that ends them, with a warning.

        Args:
            texts: N of them.

        Returns:
            "ids" (N, length) int32 and "mask" (N, length) bool, True = a token of the text.
        """
        found = self._cutting.encode_batch(list(texts))
        ids = np.full((len(found), self.length), self.padding, np.int32)
        mask = np.zeros(ids.shape, bool)
        for row, encoding in enumerate(found):
            ids[row, : len(encoding.ids)] = encoding.ids
            mask[row, : len(encoding.ids)] = True
        self._warn([text for text, encoding in zip(texts, found, strict=True) if encoding.overflowing])
        return {"ids": ids, "mask": mask}

    @functools.cached_property
    def digest(self) -> str:
        """What all ids depend on: the file, the length and the padding."""
        return hashlib.sha256(f"{self.length} {self.padding} {self.content}".encode()).hexdigest()

    @property
    def file_digest(self) -> str:
        """Of the file alone, which a run keeps as `config.tokenizer.digest`."""
        return hashlib.sha256(self.content.encode()).hexdigest()

    @property
    def empty(self) -> list[int]:
        """Ids of a text without characters, without padding."""
        return list(self._whole.encode("").ids)

    @property
    def padding(self) -> int:
        """The id that fills shorter texts."""
        return self.empty[-1] if self.pad_id is None else self.pad_id

    @property
    def largest(self) -> int:
        """The largest id that a text may have."""
        return max(self._whole.get_vocab(with_added_tokens=True).values(), default=0)

    def id_of(self, token: str) -> int | None:
        """The id of a token; None where there is no such token."""
        found: int | None = self._whole.token_to_id(token)
        return found

    def _warn(self, longer: list[str]) -> None:
        if longer:
            most = max(len(each.ids) for each in self._whole.encode_batch(longer))
            what = "%d of the texts are longer than %d tokens (up to %d) and were cut, such as %.60r"
            logging.warning(what, len(longer), self.length, most, longer[0])

    @functools.cached_property
    def _whole(self) -> Any:
        return _backend(self.content, self.place)

    @functools.cached_property
    def _cutting(self) -> Any:
        backend = _backend(self.content, self.place)
        least = backend.num_special_tokens_to_add(False)
        if self.length <= least:
            raise UserError("tokenizer.length", self.length, f"must be above the {least} tokens around every text")
        backend.enable_truncation(self.length)
        return backend


def read(path: pathlib.Path, length: int, pad_id: int | None = None) -> Tokenizer:
    """The tokenizer of a file.

    Args:
        path: tokenizer.json.
        length, pad_id: as of `Tokenizer`.

    Raises:
        UserError: there is no such file, it is not a tokenizer's, or the package `tokenizers` is not installed.
    """
    if not path.exists():
        raise UserError(FIELD, str(path), WHERE)
    try:
        untrusted.read_json(path)
        content = path.read_text(encoding="utf-8")
    except (untrusted.Unreadable, OSError) as e:
        raise UserError(FIELD, str(path), f"is not a {FILE}: {e}") from e
    tokenizer = Tokenizer(content, length, pad_id, str(path))
    if not tokenizer.empty and pad_id is None:  # which reads the file, whatever the id
        raise UserError("tokenizer.pad_id", message="is not known: no token ends a text; give the id of padding")
    return tokenizer


def of_run(directory: pathlib.Path, group: Mapping[str, Any], length: int | None = None) -> Tokenizer:
    """The tokenizer of a text encoder's run.

    Args:
        directory: of the run.
        group: `config.tokenizer` of the run.
        length: tokens of a text, at most those of the encoder; None = as many.

    Raises:
        UserError: as `read`, the file is another than the one that was imported, or texts are to be too long.
    """
    if length is not None and length > group["length"]:
        raise UserError("tokenizer.length", length, f"is more than the {group['length']} tokens that the encoder takes")
    tokenizer = read(directory / FILE, length or group["length"], group["pad_id"])
    if tokenizer.file_digest != group["digest"]:
        raise UserError(FIELD, str(directory / FILE), "is not the file that this run was imported with; put that back")
    return tokenizer


def described(tokenizer: Tokenizer, vocab_size: int) -> dict[str, Any]:
    """The group `tokenizer` of a run's configuration, which says all that a conditioner has to know.

    Args:
        tokenizer: of the encoder.
        vocab_size: of the encoder, whose ids are 0..vocab_size-1.

    Raises:
        UserError: it gives ids that the encoder does not have.
    """
    if max(tokenizer.largest, tokenizer.padding) >= vocab_size:
        what = f"has ids up to {max(tokenizer.largest, tokenizer.padding)}, and the network has {vocab_size}"
        raise UserError(FIELD, tokenizer.place, f"{what}; give the file of the same model")
    known = dict(length=tokenizer.length, pad_id=tokenizer.padding, empty=tokenizer.empty)
    return known | dict(digest=tokenizer.file_digest)


def _backend(content: str, place: str) -> Any:
    """The package's tokenizer, which neither cuts nor fills.

    Raises:
        UserError: the package is not installed, or this is not a tokenizer.
    """
    try:
        import tokenizers
    except ImportError as e:
        what = "needs the package tokenizers, which is not installed; pip install tokenizers"
        raise UserError(FIELD, place, what) from e
    try:
        backend = tokenizers.Tokenizer.from_str(content)
    except Exception as e:  # the package raises nothing more narrow
        raise UserError(FIELD, place, f"is not a {FILE}: {' '.join(str(e).split())[:200]}") from e
    backend.no_truncation()
    backend.no_padding()
    return backend
