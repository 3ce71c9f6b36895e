"""Files that are whole or not there, and never written through a symbolic link."""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Iterator
from typing import IO


@contextlib.contextmanager
def replacing(path: pathlib.Path, part: pathlib.Path | None = None) -> Iterator[IO[bytes]]:
    """A file to write, which takes the place of `path` when all is written; `part` is its name until then."""
    part = part or path.with_name(f"{path.name}.part")
    part.unlink(missing_ok=True)
    with part.open("xb") as file:
        yield file
    part.replace(path)


def append_line(path: pathlib.Path, line: str) -> None:
    """Append a line, on its own whatever stood before it: a crash or a full disk may have left half a line."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o666)
    with open(descriptor, "r+b", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        if end:
            file.seek(end - 1)
        torn = end > 0 and file.read(1) != b"\n"
        content = memoryview(f"{chr(10) if torn else ''}{line}\n".encode())
        while content:
            content = content[file.write(content) :]
