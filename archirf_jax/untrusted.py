"""Reading files that somebody else may have made: nothing in them is run, and their size is bounded."""

from __future__ import annotations

import json
import math
import pathlib
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable
from typing import IO, Any

import numpy as np

from archirf_jax.errors import UserError, printable

LARGEST_ARRAYS = 16 * 2**30  # bytes
LARGEST_JSON = 64 * 2**20
HEADERS: dict[tuple[int, int], Callable[[IO[bytes]], tuple[tuple[int, ...], bool, np.dtype]]] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
# What zipfile and numpy raise, by the place of the damage.
DAMAGE = (
    *(OSError, EOFError, ValueError, LookupError, TypeError, SyntaxError, RuntimeError, NotImplementedError),
    *(MemoryError, RecursionError, OverflowError, zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError),
)


class Unreadable(ValueError):
    """A file that is absent, damaged, too large or of another kind; one line that says why."""

    def __init__(self, why: object) -> None:
        super().__init__(" ".join(printable(str(why)).split())[:300] or type(why).__name__)


def read_json(path: pathlib.Path, most: int = LARGEST_JSON, **options: Any) -> Any:
    """What a JSON file holds; options as of `json.loads`.

    Raises:
        Unreadable: not a regular file, larger than `most` bytes, or not JSON.
    """
    try:
        _check_regular(path)
        with path.open("rb") as file:
            content = file.read(most + 1)
    except OSError as e:
        raise Unreadable(e) from e
    if len(content) > most:
        raise Unreadable(f"it has more than {most:,} bytes")
    return parse_json(content, **options)


def parse_json(text: str | bytes, **options: Any) -> Any:
    """What a JSON text holds; options as of `json.loads`.

    Raises:
        Unreadable: not JSON, too deep, or a number with too many digits.
    """
    try:
        return json.loads(text, **options)
    except UserError:
        raise
    except (ValueError, RecursionError) as e:
        raise Unreadable(e) from e


def map_array(path: pathlib.Path, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """The array of an .npy file, which stays on disk.

    Raises:
        Unreadable: not a regular file, damaged, or of another shape or type.
    """
    try:
        _check_regular(path)
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except DAMAGE as e:
        raise Unreadable(e) from e
    if array.shape != shape or array.dtype != dtype:
        raise Unreadable(f"it holds {array.dtype} of shape {array.shape} and not {np.dtype(dtype)} of {shape}")
    return array


def read_arrays(path: pathlib.Path, most: int = LARGEST_ARRAYS) -> dict[str, np.ndarray]:
    """The arrays of an .npz file by name.

    Raises:
        Unreadable: not a regular file, damaged, not such an archive, arrays of objects, or more than `most` bytes.
    """
    try:
        _check_regular(path)
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if sum(member.file_size for member in members) > most:
                raise ValueError(f"its arrays have more than {most:,} bytes")
            return {member.filename.removesuffix(".npy"): _array(archive, member) for member in members}
    except DAMAGE as e:
        raise Unreadable(e) from e


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(member) as file:
        shape, fortran, dtype = HEADERS[np.lib.format.read_magic(file)](file)
        if dtype.hasobject:
            raise ValueError(f"{member.filename} holds objects, which might run code")
        content = file.read()  # at most the size that the archive gives, which was counted
    if min(shape, default=0) < 0 or len(content) != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{member.filename} holds {len(content)} bytes, not an array {shape} of {dtype}")
    return np.frombuffer(bytearray(content), dtype).reshape(shape, order="F" if fortran else "C")


def finite(array: np.ndarray) -> bool:
    """Whether an array holds real numbers alone, all of them finite as the float32 that is computed with."""
    if array.dtype.kind not in "biuf":
        return False
    with np.errstate(over="ignore"):
        return bool(np.isfinite(array.astype(np.float32)).all())


def check_files(folder: pathlib.Path) -> None:
    """Make sure that nothing in a folder that a library reads is a pipe or a device, which it would wait for.

    Raises:
        Unreadable: one is.
    """
    for path in folder.iterdir():
        if path.exists() and not path.is_file() and not path.is_dir():
            raise Unreadable(f"{path.name} is not a regular file")


def _check_regular(path: pathlib.Path) -> None:
    if path.exists() and not path.is_file():
        raise OSError("it is not a regular file")
