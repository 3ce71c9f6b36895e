"""What a figure was measured on, and how figures are reported."""

from __future__ import annotations

import json
import os
import pathlib
import platform
import shutil
import subprocess
import sys
from importlib import metadata
from typing import Any

import jax

VERSIONS = ("jax", "jaxlib", "flax", "optax")
COMMIT = "BENCHMARK_COMMIT"  # an environment variable: the commit, for a machine that has no repository


def describe() -> dict[str, str]:
    """The machine, the versions and the commit."""
    return {
        "device": jax.devices()[0].device_kind,
        "platform": f"{platform.machine()}, {len(jax.devices())} device(s), python {platform.python_version()}",
        **{name: metadata.version(name) for name in VERSIONS},
        "commit": commit(),
    }


def commit() -> str:
    """What COMMIT says, or the commit of the repository; "" where neither is known."""
    if given := os.environ.get(COMMIT):
        return given
    if shutil.which("git") is None:
        return ""
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def say(line: str) -> None:
    """Print a line."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def write(figures: dict[str, Any], out: pathlib.Path | None) -> None:
    """Write figures and what they were measured on as JSON; without a path nothing is written."""
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(describe() | figures, indent=1) + "\n")
