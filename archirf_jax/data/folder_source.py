"""Images in a folder, one subfolder a class."""

from __future__ import annotations

import hashlib
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from archirf_jax.data import folder_captions
from archirf_jax.data.digests import digest
from archirf_jax.data.folder_captions import FolderCaptions
from archirf_jax.errors import UserError

CAPTION = "caption"  # the feature
UNKNOWN = np.uint64(0)  # the stamp of a file that is not there


class FolderSource:
    """A tree of images, and perhaps their captions; a folder without subfolders is one class.

    Classes are sorted by name, those named by numbers as numbers and first. A part of the folder, such as the first
    80 % of "train[:80%]", consists of the files whose names' hashes lie in it: what is added to the folder later, or
    removed, moves no other file from one part to another.

    Attributes:
        path: of the folder.
        split: which part of it.
        texts: names of the features that hold texts.
    """

    checked = False

    def __init__(self, path: pathlib.Path, labelled: bool = True, split: str = "train") -> None:
        part = _part(split)
        if not path.is_dir():
            raise UserError("data.name", str(path), "is a file" if path.exists() else "is a folder that does not exist")
        folders = sorted((entry for entry in _visible(path) if entry.is_dir()), key=_class_order)
        loose = [entry for entry in _visible(path) if not entry.is_dir() and entry.name not in folder_captions.TABLES]
        if folders and loose:
            raise UserError(
                "data.name",
                str(path),
                f"has class folders and also {len(loose)} files outside of them, such as {loose[0].name!r}; "
                "move each into a class folder",
            )
        names = [folder.name for folder in folders] or [path.absolute().name]
        every = [_files(folder, {}) for folder in folders or [path]]  # of all parts, which have the same classes
        files, captions = folder_captions.separate(every)
        empty = ", ".join(name for name, found in zip(names, files, strict=True) if not found)
        if empty:
            raise UserError("data.name", str(path), f"has no images of class {empty}; add some or remove the folder")
        files = [[file for file in found if part.holds(file.relative_to(path))] for found in files]
        if not any(files):
            raise UserError("data.split", split, f"holds no image of {str(path)!r}; take a larger part")
        self.path, self.split = path, split
        self._files = [file for found in files for file in found]
        self._captions = FolderCaptions(captions, path)
        self.texts = [CAPTION] if self._captions.are_there else []
        self._labels = [label for label, found in enumerate(files) for _ in found] if labelled else None
        self.class_names = names if labelled else []

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        raw: dict[str, Any] = {"image": self._files[index]}
        return raw if self._labels is None else raw | {"label": self._labels[index]}

    def captions(self, index: int, feature: str = CAPTION) -> list[str]:
        """The captions beside the image or in a table; [] where there are none."""
        if feature != CAPTION:
            raise UserError("data.fields", feature, f"is not a feature of a folder; its captions are {CAPTION!r}")
        return self._captions.of(self._files[index])

    def describe(self, index: int) -> str:
        """The file's path."""
        return str(self._files[index])

    def digest(self) -> str:
        """A digest of class names, and names and sizes of files; where the folder lies does not change it."""
        files = ((str(file.relative_to(self.path)), found and found[0]) for file, found in self._sizes_and_times())
        return digest([self.class_names, len(self), *files])

    def stamps(self) -> np.ndarray:
        """(N,) uint64, each a hash of a file's name, size and time of modification; UNKNOWN where it is not there."""
        stamps = np.full(len(self), UNKNOWN)
        for i, (file, found) in enumerate(self._sizes_and_times()):
            if found is not None:
                said = repr((str(file.relative_to(self.path)), *found)).encode("utf-8", "surrogateescape")
                stamps[i] = int.from_bytes(hashlib.blake2b(said, digest_size=8).digest())
        return stamps

    def _sizes_and_times(self) -> Iterator[tuple[pathlib.Path, tuple[int, int] | None]]:
        """Files with size and nanosecond of modification; None for those that are not there or links to nothing."""
        for file in self._files:  # such a file is named when it is decoded
            try:
                status = file.stat()
                yield file, (status.st_size, status.st_mtime_ns)
            except OSError:
                yield file, None


class Part(NamedTuple):
    """The files whose names' hashes lie from `low` to below `high`, in percent."""

    low: float
    high: float

    def holds(self, name: pathlib.PurePath) -> bool:
        """Whether a file of this name, from the folder on, belongs to the part."""
        hashed = hashlib.blake2b(os.fsencode(name.as_posix()), digest_size=8).digest()
        return self.low <= 100 * int.from_bytes(hashed) / 2**64 < self.high


def _part(split: str) -> Part:
    match = re.fullmatch(r"train(?:\[(?:(\d{1,3}(?:\.\d+)?)%)?:(?:(\d{1,3}(?:\.\d+)?)%)?\])?", split, re.ASCII)
    part = Part(float(match[1] or 0), float(match[2] or 100)) if match else Part(1, 0)
    if not 0 <= part.low < part.high <= 100:
        raise UserError("data.split", split, "is not a split of a folder; it has train and parts such as train[:80%]")
    return part


def _class_order(folder: pathlib.Path) -> tuple[bool, int, str]:
    number = int(folder.name) if folder.name.isdecimal() else None
    return number is None, number or 0, folder.name


def _visible(path: pathlib.Path) -> list[pathlib.Path]:
    try:
        return sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    except OSError as e:
        raise UserError("data.name", str(path), f"cannot be listed: {e.strerror}") from e


def _files(folder: pathlib.Path, seen: dict[pathlib.Path, pathlib.Path]) -> list[pathlib.Path]:
    """All files below a folder of a class; `seen` are the folders so far, by the folder that a link leads to."""
    resolved = folder.resolve()
    if resolved in seen:
        raise UserError(
            "data.name", str(folder), f"is a link to {str(seen[resolved])!r}, whose images are there already; remove it"
        )
    seen[resolved] = folder
    found: list[pathlib.Path] = []
    for entry in _visible(folder):
        found += _files(entry, seen) if entry.is_dir() else [entry]
    return found
