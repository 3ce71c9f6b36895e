"""Checksums of a checkpoint's files, so that damage is found before anything is read from them."""

from __future__ import annotations

import json
import pathlib
import zlib
from collections.abc import Iterable

FILE = "checksums.json"
HEADS = ("_METADATA", "metadata")  # what Orbax writes for arrays, and for JSON


def write(directory: pathlib.Path) -> None:
    """Write the CRC-32 of every file below `directory` into FILE there, whole or not at all."""
    sums = {str(path.relative_to(directory)): _crc(path) for path in sorted(directory.rglob("*")) if path.is_file()}
    part = directory.with_name(f"{directory.name}.{FILE}.part")
    part.write_text(json.dumps(sums))
    part.replace(directory / FILE)


def lacking(directory: pathlib.Path, folders: Iterable[str]) -> list[str]:
    """The subfolders of a checkpoint that it never had; none where its checksums cannot tell."""
    try:
        known = {pathlib.PurePath(name).parts[0] for name in json.loads((directory / FILE).read_text())}
    except (OSError, ValueError, TypeError):
        return []
    return [name for name in folders if name not in known and not (directory / name).exists()]


def find_damage(directory: pathlib.Path, folders: Iterable[str]) -> str | None:
    """What is wrong with the first bad file in the given subfolders of a checkpoint; None if nothing seems to be."""
    wanted = set(folders)
    for name in wanted:
        if not any((directory / name / file).is_file() for file in HEADS):
            return f"{name}/{HEADS[0]} is missing"
    try:
        sums = dict(json.loads((directory / FILE).read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):
        return f"{FILE} is not readable"
    for name, crc in sums.items():
        path = directory / name
        if pathlib.PurePath(name).parts[0] in wanted:
            if not path.is_file():
                return f"{name} is missing"
            if _crc(path) != crc:
                return f"{name} has changed since it was written"
    return None


def _crc(path: pathlib.Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            crc = zlib.crc32(block, crc)
    return crc
