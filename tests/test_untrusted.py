"""Files of others: whatever is in them, reading gives what was written or one line that says why not."""

from __future__ import annotations

import io
import json
import os
import pathlib
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from archirf_jax import untrusted
from archirf_jax.errors import printable
from archirf_jax.untrusted import Unreadable, parse_json, read_arrays, read_json
from tests.mutations import MUTATIONS, mutated

ARRAYS = {"label": np.arange(6, dtype=np.int32), "low_res": np.linspace(0, 1, 96, dtype=np.float32).reshape(2, 4, 4, 3)}


def archive(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def claiming(shape: str, descr: str = "'<f8'", size: int | None = None) -> bytes:
    """An archive whose array is said to have a shape, and by the directory of the archive `size` bytes."""
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("table.npy", np.lib.format.magic(1, 0) + struct.pack("<H", len(header)) + header + bytes(80))
        if size is not None:
            file.infolist()[0].file_size = size
    return buffer.getvalue()


@pytest.mark.parametrize(
    "array",
    [ARRAYS["low_res"], np.float32(3), np.zeros((3, 0)), np.arange(6).reshape(2, 3).T, np.array("words")],
    ids=["images", "number", "empty", "columns first", "text"],
)
def test_arrays_come_back_as_they_were_written(array: Any, tmp_path: pathlib.Path) -> None:
    (tmp_path / "x.npz").write_bytes(archive(x=array, **ARRAYS))
    found = read_arrays(tmp_path / "x.npz")
    assert found.keys() == {"x", *ARRAYS}
    assert (found["x"].dtype, found["x"].shape) == (np.asarray(array).dtype, np.shape(array))
    np.testing.assert_array_equal(found["x"], array)


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"PK\x03\x04", b"words", archive(x=np.asarray([{}, None], object))),
        *(claiming("(10000000000000,)"), claiming("(-1,)"), claiming("(3,"), claiming("(10,)", "'|O'")),
        *(claiming("(10000000000000,)", "'|V0'"), claiming("'x'"), claiming("(10,)", size=2**62)),
    ],
)
def test_what_holds_no_arrays_is_one_line_and_takes_no_memory(content: bytes, tmp_path: pathlib.Path) -> None:
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(Unreadable) as caught:
        read_arrays(tmp_path / "x.npz")
    assert 0 < len(str(caught.value)) <= 300 and "\n" not in str(caught.value)


def test_the_size_is_bounded_before_anything_is_unpacked(tmp_path: pathlib.Path) -> None:
    (tmp_path / "x.npz").write_bytes(archive(x=np.zeros(10**6, np.uint8)))
    assert (tmp_path / "x.npz").stat().st_size < 10_000
    assert len(read_arrays(tmp_path / "x.npz", most=1_100_000)["x"]) == 10**6
    with pytest.raises(Unreadable):
        read_arrays(tmp_path / "x.npz", most=900_000)
    (tmp_path / "x.json").write_text(json.dumps(["word"] * 1000))
    assert len(read_json(tmp_path / "x.json", most=10_000)) == 1000
    with pytest.raises(Unreadable):
        read_json(tmp_path / "x.json", most=1_000)


@pytest.mark.parametrize("read", [read_arrays, read_json])
def test_pipes_devices_folders_and_what_is_absent_are_not_read(
    read: Callable[[pathlib.Path], Any], tmp_path: pathlib.Path
) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, pathlib.Path("/dev/zero"), tmp_path / "absent"):
        with pytest.raises(Unreadable):
            read(path)


@pytest.mark.parametrize("text", ["", "{", "[" * 200_000, "1" * 5_000, b"\xff\xfe\x00", "{'a': 1}"])
def test_what_is_not_json_is_one_line(text: str | bytes) -> None:
    with pytest.raises(Unreadable) as caught:
        parse_json(text)
    assert 0 < len(str(caught.value)) <= 300 and "\n" not in str(caught.value)


def test_a_changed_archive_gives_other_arrays_or_is_refused(tmp_path: pathlib.Path) -> None:
    path, read, refused = tmp_path / "x.npz", 0, 0
    for content in mutated(archive(**ARRAYS), seed=1):
        path.write_bytes(content)
        try:
            read += all(isinstance(array, np.ndarray) for array in read_arrays(path).values())
        except Unreadable:
            refused += 1
    assert read + refused == MUTATIONS and refused > MUTATIONS / 2


def test_a_changed_json_is_read_or_refused(tmp_path: pathlib.Path) -> None:
    path, refused = tmp_path / "x.json", 0
    for content in mutated(json.dumps({"step": 3, "model": {"depth": [1, 2.5, None]}}).encode(), seed=2):
        path.write_bytes(content)
        try:
            read_json(path)
        except Unreadable:
            refused += 1
    assert MUTATIONS / 2 < refused < MUTATIONS


def test_damaged_numbers_are_found_by_their_checksum(tmp_path: pathlib.Path) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **ARRAYS)
    content = bytearray(buffer.getvalue())
    content[content.index(ARRAYS["low_res"].tobytes()) + 5] ^= 1
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(Unreadable):
        read_arrays(tmp_path / "x.npz")
    assert zlib.error in untrusted.DAMAGE


def test_control_characters_are_shown_as_escapes() -> None:
    assert printable("a\x1b[2Jb\rc\u202ed ü 字\tx\ny") == "a\\x1b[2Jb\\rc\\u202ed ü 字\tx\ny"
