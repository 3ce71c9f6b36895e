"""What a figure was measured on."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata

import jax


def describe() -> dict[str, str]:
    """The machine, the versions and the commit."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "device": jax.devices()[0].device_kind,
        "platform": f"{platform.machine()}, {len(jax.devices())} device(s), python {platform.python_version()}",
        **{name: metadata.version(name) for name in ("jax", "flax", "optax")},
        "commit": commit.stdout.strip(),
    }
