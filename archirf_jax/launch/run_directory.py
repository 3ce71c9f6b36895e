"""Run directories that no training made."""

from __future__ import annotations

import pathlib
import shutil
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import ml_collections

from archirf_jax.contracts import Network, Params, TrainState
from archirf_jax.data import tokenizer
from archirf_jax.errors import UserError
from archirf_jax.files import check_run_directory
from archirf_jax.launch import config as configuration
from archirf_jax.training.checkpoints import Checkpoints

NETWORK = "network"
FROZEN = "frozen"  # of a run directory: the runs that it needs and never changes, by name
ATTACHED = (tokenizer.FILE,)  # files that a run may have besides its configuration and weights


class Contents(NamedTuple):
    """What a run directory is made of.

    Attributes:
        config: of the run, resolved.
        params: arrays by module, which keep their types.
        attached: files that belong to the run, by their path in it.
    """

    config: dict[str, Any]
    params: dict[str, Params]
    attached: Mapping[str, bytes] = {}


def write(
    workdir: pathlib.Path,
    config: dict[str, Any],
    params: dict[str, Params],
    step: int,
    attached: Mapping[str, bytes] | None = None,
    frozen: Mapping[str, Contents] | None = None,
) -> None:
    """Make a run directory whose average "ema" is these parameters: all that `sample` and `evaluate` read of one.

    Args:
        workdir: made, with its parents; whole or not at all.
        config: of the run, resolved.
        params: arrays by module, which keep their types.
        step: of the checkpoint.
        attached: files that belong to the run, by their path in it.
        frozen: runs that it needs and never changes, by name.

    Raises:
        UserError: the directory is not new or empty, or cannot be written.
    """
    check_run_directory(workdir, "workdir")
    target = workdir.resolve()
    part = target.with_name(f".{target.name}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)  # left by a process that was killed
        _fill(part, Contents(config, params, attached or {}), step)
        for name, contents in (frozen or {}).items():
            _fill(part / FROZEN / name, contents, step=0)
        part.rename(target)
    except OSError as e:
        raise UserError("workdir", str(workdir), f"cannot be a run directory: {e.strerror or e}") from e
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _fill(folder: pathlib.Path, contents: Contents, step: int) -> None:
    folder.mkdir(parents=True)
    for name, content in contents.attached.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    network = Network(params={}, averages={"ema": contents.params}, opt=())
    checkpoints = Checkpoints(folder / "checkpoints", keep=1)
    try:
        checkpoints.save(TrainState(step=jnp.int32(step), networks={NETWORK: network}), contents.config)
        checkpoints.wait()
    finally:
        checkpoints.close()
    configuration.save(ml_collections.ConfigDict(contents.config), folder)


def attached(workdir: pathlib.Path) -> dict[str, bytes]:
    """The files of ATTACHED that a run has, by name."""
    return {name: (workdir / name).read_bytes() for name in ATTACHED if (workdir / name).is_file()}
