"""Where the time of a program goes on the device: its kernels, by the profiler."""

from __future__ import annotations

import collections
import pathlib
import re
import tempfile
from collections.abc import Callable
from typing import Any

import jax

LARGEST = 25


def kernels(call: Callable[[], Any], repeats: int) -> dict[str, Any]:
    """Milliseconds of a call in which the device works, and those of its largest kernels; nothing on a CPU."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(repeats):
                found = call()
            jax.block_until_ready(found)
        files = list(pathlib.Path(folder).rglob("*.xplane.pb"))
        profile = jax.profiler.ProfileData.from_file(str(files[0]))
        spent: collections.Counter[str] = collections.Counter()
        for plane in profile.planes:
            for line in plane.lines if plane.name.startswith("/device:GPU") else ():
                for event in line.events if line.name.startswith("Stream") else ():
                    spent[re.sub(r"[_.]?\d+$", "", event.name)] += event.duration_ns / 1e6 / repeats
    busy = sum(spent.values())
    return {"busy_milliseconds": busy, "kernels_milliseconds": dict(spent.most_common(LARGEST))}
