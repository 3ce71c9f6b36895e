"""Errors that a user caused and can correct."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

UNSAID: Any = object()
LONGEST = 160  # characters of a value in a message


class UserError(ValueError):
    """Wrong input: one line that says what was given, what is allowed and what to do.

    `UserError(field, value, message)` is about a field, such as "model.num_heads" or "sample.guidance.scale"; a
    command renders it as its flag or as a field of the configuration, a notebook as it is. `UserError(message)` is
    about none. Commands print the line and exit with code 2.

    Args:
        field: dotted name in the configuration's terms.
        value: what was given; UNSAID leaves it out.
        message: goes on after the value: "must be above 0".
    """

    def __init__(self, field: str, value: Any = UNSAID, message: str | None = None) -> None:
        self.field: str | None = None if message is None else field
        self.value, self.message = (UNSAID, field) if message is None else (value, message)
        super().__init__(self.render(self.field))

    def render(self, name: str | None) -> str:
        """The line, with the field under another name."""
        given = "" if self.value is UNSAID else f"{_shortened(repr(self.value).replace(chr(10), ' ').strip())} "
        return f"{name}: {given}{self.message}" if name else self.message


def _shortened(text: str) -> str:
    """A text without its middle where it is longer than LONGEST, so that a message stays one that can be read."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 40]}...{text[-37:]}"


def nearest(name: str, allowed: Iterable[str]) -> str:
    """' (did you mean X?)' for the closest allowed name, '' where none is close."""
    close = difflib.get_close_matches(name, list(allowed), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def listed(names: Sequence[str], most: int = 12) -> str:
    """Names in a message, the first `most` of them and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def printable(text: str) -> str:
    """Text with control characters as escapes, so that a name can neither move the cursor nor colour a terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)
