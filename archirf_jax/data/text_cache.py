"""A text cache: what a frozen text encoder makes of captions, each of them once, memory-mapped.

A caption is found by its digest, so that a cache serves every set whose captions it holds. The text without characters,
which stands for no caption, is always there.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from archirf_jax import untrusted
from archirf_jax.data import resumable
from archirf_jax.data.digests import digest
from archirf_jax.errors import UserError

HEADER = "text_states.json"  # written last
KEYS, TOKENS, MASK, POOLED = "captions.npy", "tokens.npy", "mask.npy", "pooled.npy"
FILES = {"tokens": TOKENS, "mask": MASK, "pooled": POOLED}
KEY = np.dtype("S32")  # half of a SHA-256, in hexadecimal
EMPTY = ""
Arrays = dict[str, np.ndarray]
Encode = Callable[[list[str]], Arrays]  # texts -> "tokens" (B, L, D), "mask" (B, L) and maybe "pooled" (B, P)


@dataclasses.dataclass(frozen=True)
class Header:
    """What a cache says of itself.

    Attributes:
        encoder: digest of the run that made it.
        length: tokens of each caption, L.
        width: of each token, D.
        tokens: which of the encoder's arrays the tokens are.
        pooled: which of them the pooled vectors are; None = there are none.
        pooled_width: of these, P.
        masked: whether padding was hidden from the encoder.
        captions: how many.
        captions_digest: of all their keys.
    """

    encoder: str
    length: int
    width: int
    tokens: str
    pooled: str | None
    pooled_width: int | None
    masked: bool
    captions: int
    captions_digest: str

    def shapes(self) -> dict[str, tuple[tuple[int, ...], Any]]:
        """Shape and type of each array, by file."""
        found: dict[str, tuple[tuple[int, ...], Any]] = {KEYS: ((self.captions,), KEY)}
        found[TOKENS] = (self.captions, self.length, self.width), np.float16
        found[MASK] = (self.captions, self.length), np.bool_
        if self.pooled_width is not None:
            found[POOLED] = (self.captions, self.pooled_width), np.float16
        return found


class TextCache:
    """The cache in a folder.

    Raises:
        UserError: about `field`: there is none, it is not finished, or its files do not fit together.
    """

    def __init__(self, folder: pathlib.Path, field: str) -> None:
        self.folder, self._field = folder, field
        self.header = _header(folder, field)
        try:
            self._arrays = {
                name: untrusted.map_array(folder / name, *shape) for name, shape in self.header.shapes().items()
            }
        except untrusted.Unreadable as e:
            raise UserError(field, str(folder), f"has files that do not fit {HEADER}: {e}") from e

    def rows(self, texts: Sequence[str]) -> np.ndarray:
        """(N,) the row of each text; -1 for those that are not there."""
        asked = np.asarray([key(text) for text in texts], KEY)
        places = np.minimum(np.searchsorted(self._keys, asked), len(self._keys) - 1)
        return np.where(self._keys[places] == asked, places, -1)

    def keys(self, rows: np.ndarray) -> np.ndarray:
        """The digests of captions, like `rows`."""
        return self._keys[rows]

    def states(self, rows: np.ndarray) -> Arrays:
        """What the encoder made of some captions: "tokens" (n, L, D), "mask" (n, L) and maybe "pooled" (n, P)."""
        return {name: self._arrays[file][rows] for name, file in FILES.items() if file in self._arrays}

    def empty(self) -> Arrays:
        """What the encoder made of the text without characters, without batch axis."""
        return {name: array[0] for name, array in self.states(self.rows([EMPTY])).items()}

    @functools.cached_property
    def _keys(self) -> np.ndarray:
        return np.asarray(self._arrays[KEYS])


def key(text: str) -> bytes:
    """The digest by which a caption is found."""
    return digest([text.encode("utf-8", "surrogatepass")])[: KEY.itemsize].encode()


def make(folder: pathlib.Path, texts: Iterable[str], encode: Encode, plan: dict[str, Any], batch_size: int) -> Header:
    """Make a cache, or go on with it.

    Args:
        folder: made, with its parents.
        texts: captions, in any order; equal ones are encoded once.
        encode: what makes states of texts; called with `batch_size` of them each time.
        plan: the fields of `Header` but those of the captions.
        batch_size: captions at a time.

    Raises:
        UserError: the folder holds something else, or a state is not finite.
    """
    known = {key(text): text for text in (EMPTY, *texts)}
    keys = sorted(known)
    header = Header(**plan, captions=len(keys), captions_digest=digest(keys))
    kept = dataclasses.asdict(header)
    if resumable.is_whole(folder, HEADER):
        resumable.check_same(folder, TextCache(folder, "out").header, kept)
        return header

    def parts(done: int) -> Iterator[Arrays]:
        for first in range(done, len(keys), batch_size):
            chosen = keys[first : first + batch_size]
            filled = [known[each] for each in chosen] + [EMPTY] * (batch_size - len(chosen))  # one program for all
            yield {KEYS: np.asarray(chosen, KEY)} | _halves(encode(filled), len(chosen), known[chosen[0]])

    resumable.fill(folder, kept | {"batch_size": batch_size}, header.shapes(), parts)
    resumable.finish(folder, HEADER, kept)
    return header


def _halves(made: Arrays, count: int, first: str) -> Arrays:
    found = {}
    for name, array in made.items():
        if not np.isfinite(array).all():
            raise UserError("text_encoder", message=f"gives nan or infinity for texts such as {first!r:.60}")
        found[FILES[name]] = array[:count] if name == "mask" else resumable.half(array[:count])
    return found


def _header(folder: pathlib.Path, field: str) -> Header:
    path = folder / HEADER
    if not path.exists():
        unfinished = (folder / resumable.PROGRESS).exists()
        what = "is not finished; run the same prepare_data again" if unfinished else "is not a text cache"
        advice = "" if unfinished else f" (it has no {HEADER}); name its place or make one: prepare_data --text_encoder"
        raise UserError(field, str(folder), f"{what}{advice}")
    try:
        header = Header(**untrusted.read_json(path))
        _check(header)
    except (ValueError, TypeError) as e:
        raise UserError(field, str(folder), f"has a damaged {HEADER}: {' '.join(str(e).split())[:200]}") from e
    return header


def _check(header: Header) -> None:
    kinds: dict[str, type] = {"length": int, "width": int, "pooled_width": int, "captions": int, "masked": bool}
    for field in dataclasses.fields(header):
        value, kind = getattr(header, field.name), kinds.get(field.name, str)
        if value is None and field.name.startswith("pooled"):
            continue
        if not isinstance(value, kind) or isinstance(value, int) and kind is int and value < 1:
            raise ValueError(f"{field.name} is not of the type {kind.__name__}, or not above 0")
    if (header.pooled is None) != (header.pooled_width is None):
        raise ValueError("pooled and pooled_width do not go together")
