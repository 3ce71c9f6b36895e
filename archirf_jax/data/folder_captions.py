"""Captions of images in a folder: NAME.txt beside each, or tables of names and texts, metadata.jsonl and .csv."""

from __future__ import annotations

import csv
import functools
import io
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from archirf_jax import untrusted
from archirf_jax.errors import UserError

TABLES = ("metadata.jsonl", "metadata.csv")
NAME, TEXT = "file_name", "text"  # columns
SUFFIX = ".txt"


class Found(NamedTuple):
    """Where captions are.

    Attributes:
        beside: files NAME.txt by their images.
        tables: files of TABLES.
    """

    beside: dict[pathlib.Path, pathlib.Path]
    tables: list[pathlib.Path]


def separate(folders: Sequence[Sequence[pathlib.Path]]) -> tuple[list[list[pathlib.Path]], Found]:
    """(files of each folder that are images, files of captions); a text without an image stays among the images."""
    every = [file for files in folders for file in files]
    texts = {file for file in every if file.suffix == SUFFIX}
    pairs = ((file, file.with_suffix(SUFFIX)) for file in every if file not in texts)
    found = Found({image: text for image, text in pairs if text in texts}, [f for f in every if f.name in TABLES])
    others = {*found.beside.values(), *found.tables}
    return [[file for file in files if file not in others] for files in folders], found


class FolderCaptions:
    """Captions by image.

    Every line of NAME.txt is a caption of its own, and so is every row of a table; NAME.txt goes before tables.
    """

    def __init__(self, found: Found, path: pathlib.Path) -> None:
        """found: below the folder `path`, which may have tables too."""
        above = [path / name for name in TABLES if (path / name).is_file()]
        self._beside, self._tables = found.beside, list(dict.fromkeys([*above, *found.tables]))

    @property
    def are_there(self) -> bool:
        """Whether there are files of captions."""
        return bool(self._beside or self._tables)

    def of(self, image: pathlib.Path) -> list[str]:
        """The captions of an image; [] where there are none.

        Raises:
            UserError: a file is damaged.
        """
        if image in self._beside:
            return _read(self._beside[image]).splitlines()
        return self._rows.get(os.path.normpath(image), [])

    @functools.cached_property
    def _rows(self) -> dict[str, list[str]]:
        rows: dict[str, list[str]] = {}
        for table in self._tables:
            for number, row in _table(table):
                name, texts = _checked(row, table, number)
                rows.setdefault(os.path.normpath(table.parent / name), []).extend(texts)
        return rows


def _table(path: pathlib.Path) -> Iterator[tuple[int, Any]]:
    """(number of the line, its row) of a table; empty lines are left out."""
    text = _read(path)
    if path.suffix == ".csv":
        reader = csv.DictReader(io.StringIO(text, newline=""))
        try:
            for row in reader:
                yield reader.line_num, row
        except csv.Error as e:
            raise UserError("data.name", str(path), f"is damaged after line {reader.line_num}: {e}") from e
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield number, untrusted.parse_json(line)
            except untrusted.Unreadable as e:
                raise UserError("data.name", str(path), f"is damaged in line {number}: {e}") from e


def _checked(row: Any, path: pathlib.Path, number: int) -> tuple[str, list[str]]:
    """(name of the image, its texts) of a row."""
    texts = row.get(TEXT) if isinstance(row, dict) else None
    texts = [] if texts is None else [texts] if isinstance(texts, str) else texts
    named = isinstance(row, dict) and isinstance(row.get(NAME), str) and TEXT in row
    if not named or not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        what = f"must have {NAME!r}, relative to its folder, and {TEXT!r} in every row; line {number} does not"
        raise UserError("data.name", str(path), what)
    return row[NAME], texts


def _read(path: pathlib.Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as e:
        raise UserError("data.name", str(path), "is not UTF-8; write it anew in that encoding") from e
    except OSError as e:
        raise UserError("data.name", str(path), f"cannot be read: {e.strerror}") from e
