"""Checksums of a checkpoint's files, so that damage is found before anything is read from them."""

from __future__ import annotations

import json
import pathlib
import zlib
from collections.abc import Iterable

from archirf_jax import untrusted
from archirf_jax.files import atomic_write

FILE = "checksums.json"
ARRAYS, JSON = "_METADATA", "metadata"  # what Orbax writes for every item of arrays, and of JSON
MERGED = "manifest.ocdbt"  # what it reads arrays by


def write(directory: pathlib.Path) -> None:
    """Write the CRC-32 of every file below `directory` into FILE there, whole or not at all.

    Raises:
        OSError: an item was not written completely.
    """
    for item in directory.iterdir():
        if (item / ARRAYS).is_file() and not (item / MERGED).is_file():
            raise OSError(f"{item.name} was not written completely: {MERGED} is missing")
    sums = {str(path.relative_to(directory)): _crc(path) for path in sorted(directory.rglob("*")) if path.is_file()}
    atomic_write(directory / FILE, json.dumps(sums), directory.with_name(f"{directory.name}.{FILE}.part"))


def items(directory: pathlib.Path) -> list[str] | None:
    """The items that a checkpoint has or, by its checksums, had; None where the checksums cannot be read."""
    sums = _read(directory)
    if sums is None:
        return None
    there = {path.name for path in directory.iterdir() if path.is_dir()}
    return sorted(there | {_item(name) for name in sums if "/" in name})


def find_damage(directory: pathlib.Path, wanted: Iterable[str]) -> str | None:
    """What is wrong with the first bad file in the given items of a checkpoint; None if all are whole."""
    wanted = set(wanted)
    for item in sorted(wanted):
        if not any((directory / item / file).is_file() for file in (ARRAYS, JSON)):
            return f"{item}/{ARRAYS} is missing"
    sums = _read(directory)
    if sums is None:
        return f"{FILE} is missing or not readable"
    for item in sorted(wanted - {_item(name) for name in sums}):
        return f"{FILE} does not have {item}"
    for name, crc in sums.items():
        path = directory / name
        if _item(name) in wanted:
            if not path.is_file():
                return f"{name} is missing"
            if _crc(path) != crc:
                return f"{name} has changed since it was written"
    return None


def _read(directory: pathlib.Path) -> dict[str, int] | None:
    try:
        sums = untrusted.read_json(directory / FILE)
    except untrusted.Unreadable:
        return None
    return sums if isinstance(sums, dict) and all(_item(name) for name in sums) else None


def _item(name: str) -> str:
    """The item that a file belongs to; a file outside of items counts as its own."""
    return next(iter(pathlib.PurePath(name).parts), "")


def _crc(path: pathlib.Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            crc = zlib.crc32(block, crc)
    return crc
