"""Files that are written whole or not at all, and the paths that people give."""

from __future__ import annotations

import os
import pathlib
import shutil
from collections.abc import Callable
from typing import BinaryIO

from archirf_jax.errors import UserError

# Orbax merges its files by a glob of the path as it is: what a glob reads as a pattern finds nothing.
PATTERNS = frozenset("[]*?")


def atomic_write(
    path: pathlib.Path, content: bytes | str | Callable[[BinaryIO], object], part: pathlib.Path | None = None
) -> None:
    """Replace a file by new content; a reader finds the old or the new content, even after a power cut.

    Args:
        path: the file. A symbolic link there is replaced, and what it points to is left alone.
        content: bytes, text (UTF-8), or a function that writes to a binary file.
        part: the name until all is written, on the same disk; None = the file's own name and ".part".

    Raises:
        OSError: the content cannot be written; the old file stays.
    """
    part = part or path.with_name(f"{path.name}.part")
    part.unlink(missing_ok=True)  # left by a process that was killed, or a link to another file
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666), "wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


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


def cache(name: str) -> pathlib.Path:
    """The folder of this name in the user's cache directory, for things that can be made again."""
    home = os.environ.get("XDG_CACHE_HOME", os.path.join(os.path.expanduser("~"), ".cache"))
    return pathlib.Path(home) / "archirf_jax" / name


def check_rows(path: pathlib.Path, field: str) -> None:
    """Make sure, before any work, that a line can be appended.

    Raises:
        UserError: it is a link or not a regular file, or cannot be written.
    """
    regular = path.is_file() and not path.is_symlink()
    if not (regular or not os.path.lexists(path)) or not os.access(path if regular else path.parent, os.W_OK):
        raise UserError(field, str(path), "cannot be written, and rows are added to it; it must be a file of its own")


def expand(text: str, field: str) -> pathlib.Path:
    """The path that a user gave, with "~" and "~name" as their home directories.

    Raises:
        UserError: it is empty, an address, not UTF-8, refused by the system, or names the home of an unknown user.
    """
    if not text or "://" in text:
        raise UserError(field, text, "must be a path of this machine")
    if "\0" in text:
        raise UserError(field, text, "holds a zero byte, which no path may")
    try:
        text.encode()
        path = pathlib.Path(text).expanduser()
        path.exists()
    except UnicodeEncodeError as e:
        raise UserError(field, text, "is not UTF-8; rename it") from e
    except RuntimeError as e:
        raise UserError(field, text, "begins with the home directory of a user who does not exist") from e
    except OSError as e:
        raise UserError(field, text, f"cannot be opened: {e.strerror}") from e
    return path


def check_output(path: pathlib.Path, field: str, *suffixes: str, room: int = 0) -> None:
    """Make sure, before any work, that a file of `room` bytes can be written.

    Raises:
        UserError: it has another suffix, or cannot be written, or the disk is too full.
    """
    if path.suffix not in suffixes:
        raise UserError(field, str(path), f"must end in {' or '.join(suffixes)}")
    try:
        if path.is_dir():
            raise IsADirectoryError(0, "it is a directory")
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.part")
        part.touch()
        part.unlink()
        _check_room(path, field, room)
    except OSError as e:
        raise UserError(field, str(path), f"cannot be written: {e.strerror or e}") from e


def check_output_folder(path: pathlib.Path, field: str, room: int = 0) -> None:
    """Make sure, before any work, that files of `room` bytes together can be written into an empty or a new folder.

    Raises:
        UserError: it holds something, or cannot be written, or the disk is too full.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        if (found := next(path.iterdir(), None)) is not None:
            raise UserError(
                field, str(path), f"is a folder that is not empty (it holds {found.name!r}); name a new one"
            )
        check_output(path / "part", field, "", room=room)
    except OSError as e:
        raise UserError(field, str(path), f"cannot be written: {e.strerror or e}") from e


def _check_room(path: pathlib.Path, field: str, room: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if room > free:
        what = f"takes up to {room / 2**20:,.0f} MiB, and the disk has {free / 2**20:,.0f}; make room, or draw fewer"
        raise UserError(field, str(path), what)


def check_run_directory(path: pathlib.Path, field: str) -> None:
    """Refuse a directory in which checkpoints could not be read again.

    Raises:
        UserError: its path, with its parents and links resolved, is not UTF-8 or holds a character of patterns.
    """
    whole = str(expand(os.path.realpath(path), field))
    if wrong := sorted(PATTERNS & set(whole)):
        raise UserError(field, whole, f"holds {' '.join(wrong)}, with which checkpoints cannot be read; choose another")
