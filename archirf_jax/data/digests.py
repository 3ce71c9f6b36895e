"""The digest that identifies a set."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any


def digest(parts: Iterable[Any]) -> str:
    """Hexadecimal SHA-256 of the parts; bytes and their views as they are, all else by its repr."""
    found = hashlib.sha256()
    for part in parts:
        found.update(
            part if isinstance(part, bytes | memoryview) else repr(part).encode("utf-8", "surrogateescape") + b"\n"
        )
    return found.hexdigest()
