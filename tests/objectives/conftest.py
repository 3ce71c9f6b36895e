"""Double precision, for laws that rounding would blur."""

from __future__ import annotations

from tests.processes.conftest import float64

__all__ = ["float64"]
