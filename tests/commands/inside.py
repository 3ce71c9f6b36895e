"""The sample command inside this process: its flags are read and its `main` runs, without the seconds of a start."""

from __future__ import annotations

import functools
import json
import pathlib
import types
from typing import Any
from unittest import mock

import grain  # noqa: F401  first: flags that come into being inside a flagsaver end with it
import ml_collections
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from archirf_jax import registry, tasks
from archirf_jax import sample as command
from archirf_jax.errors import UserError
from archirf_jax.launch import sampling
from tests import running

# Deterministic, few steps, no guidance: what is asked for shows undisturbed.
PLAIN = ("--solver=euler", "--steps=4", "--guidance_scale=1")


def sample(workdir: pathlib.Path, *arguments: str) -> None:
    """Run the sample command.

    Raises:
        UserError, flags.IllegalFlagValueError: what a person would read in one line.
    """
    with flagsaver.flagsaver(), mock.patch.object(sampling, "registry", types.SimpleNamespace(build=_build)):
        flags.FLAGS.mark_as_parsed()
        for argument in (f"--workdir={workdir}", *arguments):
            name, _, value = argument.removeprefix("--").partition("=")
            flags.FLAGS[name].parse(value)
        command.main([])


def arrays(workdir: pathlib.Path, out: pathlib.Path, *arguments: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, H, W, C) as integers that can be subtracted, and labels (N,)."""
    sample(workdir, f"--out={out / 'x.npz'}", *arguments)
    with np.load(out / "x.npz") as archive:
        return archive["images"].astype(int), archive["labels"]


def complaint(workdir: pathlib.Path, *arguments: str) -> str:
    """The one line that wrong arguments are answered with."""
    with pytest.raises((UserError, flags.IllegalFlagValueError)) as refused:
        sample(workdir, *arguments)
    message = str(refused.value)
    assert "\n" not in message and message.startswith(("--", "flag --")), message
    return message


def refused_as_a_command(workdir: pathlib.Path, *arguments: str) -> str:
    """The one line that a person reads."""
    done = running.sample(workdir, *arguments)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and done.stderr.startswith("error: ")
    return done.stderr


def _build(room: Any, field: str, name: str, fields: dict[str, Any]) -> Any:
    return _task(json.dumps(fields["config"].to_dict()))


@functools.cache
def _task(config: str) -> Any:
    """One task a configuration, and one compiled program a choice."""
    made = ml_collections.ConfigDict(json.loads(config)).lock()
    return registry.build(tasks, "config.task", made.task, {"config": made})
