"""Double precision, for laws that rounding would blur."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import pytest


@pytest.fixture
def float64() -> Iterator[None]:
    """Arrays made inside the test are float64 unless they say otherwise."""
    with jax.enable_x64(True):
        yield
