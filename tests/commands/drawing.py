"""The sample command inside the tests' process."""

from __future__ import annotations

import pathlib

import numpy as np

from tests import running

# Deterministic, few steps, no guidance: what is asked for shows undisturbed.
PLAIN = ("--solver=euler", "--steps=4", "--guidance_scale=1")


def sample(workdir: pathlib.Path, *arguments: str) -> None:
    """Run the sample command."""
    running.call("sample", f"--workdir={workdir}", *arguments)


def arrays(workdir: pathlib.Path, out: pathlib.Path, *arguments: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, H, W, C) as integers that can be subtracted, and labels (N,)."""
    sample(workdir, f"--out={out / 'x.npz'}", *arguments)
    with np.load(out / "x.npz") as archive:
        return archive["images"].astype(int), archive["labels"]


def refused(workdir: pathlib.Path, *arguments: str) -> running.Refusal:
    """How the sample command answers wrong arguments."""
    return running.refused("sample", f"--workdir={workdir}", *arguments)
