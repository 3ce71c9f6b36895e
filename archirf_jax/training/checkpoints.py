"""Checkpoints of a run: Orbax items `params`, `ema`, `opt`, `memory` and `config`, each readable without the others.

They are written in the background, whole or not at all.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import pathlib
import re
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint import checkpoint_managers

from archirf_jax.errors import UserError
from archirf_jax.training import checksums
from archirf_jax.training.state import TrainState

TREES = ("params", "ema", "opt", "memory")


class Checkpoints:
    """The checkpoints in `directory`, newest `keep` of them.

    Args:
        directory: created when something is saved.
        keep: how many to keep; None to read only.
    """

    def __init__(self, directory: pathlib.Path, keep: int | None = None) -> None:
        self.directory = directory.absolute()
        self._read_only = keep is None
        policy = checkpoint_managers.LatestN(keep) if keep else None
        self._manager = ocp.CheckpointManager(
            self.directory,
            item_names=(*TREES, "config"),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policy,
                create=not self._read_only,
                read_only=self._read_only,
                async_options=ocp.AsyncOptions(post_finalization_callback=self._write_checksums),
            ),
        )

    def steps(self) -> list[int]:
        """Steps that have a complete checkpoint, newest first."""
        return sorted(self._manager.all_steps(), reverse=True)

    def save(self, state: TrainState, config: dict[str, Any]) -> None:
        """Start writing `state` and the run's configuration; returns as soon as the values are copied.

        Raises:
            UserError: this or the write before it failed, for example because the disk is full.
        """
        items = {name: ocp.args.StandardSave(tree) for name, tree in _trees(state).items()}
        try:
            self._manager.save(int(state.step), args=ocp.args.Composite(config=ocp.args.JsonSave(config), **items))
        except (OSError, ValueError) as e:
            raise self._failed(e) from e

    def check(self) -> None:
        """Raise a UserError if a write in the background has failed."""
        try:
            self._manager.check_for_errors()
        except (OSError, ValueError) as e:
            raise self._failed(e) from e

    def wait(self) -> None:
        """Return when everything is on disk.

        Raises:
            UserError: a write failed.
        """
        try:
            self._manager.wait_until_finished()
        except (OSError, ValueError) as e:
            raise self._failed(e) from e

    def whole(self) -> str:
        """The steps one can go back to, after the write under way, as text."""
        with contextlib.suppress(UserError):
            self.wait()
        return ", ".join(map(str, self.steps())) or "none"

    def restore(self, like: TrainState) -> TrainState | None:
        """The newest readable state, shaped and placed like `like` (arrays or ShapeDtypeStructs); None without any.

        A damaged checkpoint is named, moved to `damaged/` and the one before it is taken.
        """
        found = self._newest(_trees(like))
        if found is None:
            return None
        step, items = found
        return dataclasses.replace(like, step=jax.numpy.asarray(step, "int32"), **items)

    def restore_ema(self, like: Any, step: int | None = None) -> tuple[int, Any]:
        """(step, EMA parameters) of the newest readable checkpoint, or of `step`; reads nothing else.

        Raises:
            UserError: there is none.
        """
        if step is not None and step not in self.steps():
            raise UserError(f"no checkpoint of step {step}; there are {self.whole()}")
        found = self._newest({"ema": like}, only=step)
        if found is None:
            raise UserError(f"no usable checkpoint in {str(self.directory)!r}; train until the first one is saved")
        return found[0], found[1]["ema"]

    def close(self) -> None:
        """Release the directory; what `wait` has to say of failed writes is not said again."""
        with contextlib.suppress(OSError, ValueError):
            self._manager.close()

    def _newest(self, like: dict[str, Any], only: int | None = None) -> tuple[int, dict[str, Any]] | None:
        args = {name: ocp.args.StandardRestore(jax.tree.map(_on_first_device, tree)) for name, tree in like.items()}
        for step in self.steps() if only is None else [only]:
            damage = checksums.find_damage(self.directory / str(step), like)
            if damage is None:
                return step, dict(self._manager.restore(step, args=ocp.args.Composite(**args)).items())
            logging.warning("the checkpoint of step %d is damaged: %s", step, damage)
            self._set_aside(step)
        return None

    def _write_checksums(self) -> None:
        # Called when all files are written and before the folder gets its final name: part of what is whole or absent.
        for unfinished in self.directory.glob(f"*{ocp.utils.TMP_DIR_SUFFIX}*"):
            checksums.write(unfinished)

    def _set_aside(self, step: int) -> None:
        if self._read_only:
            return
        folder = self.directory.parent / "damaged"
        folder.mkdir(exist_ok=True)
        names = (f"{step}.{i}" if i else f"{step}" for i in itertools.count())
        place = next(folder / name for name in names if not (folder / name).exists())
        (self.directory / str(step)).replace(place)
        self._manager.reload()
        logging.warning("moved it to %s; checkpoints left: %s", place, self.whole())

    def _failed(self, error: Exception) -> UserError:
        system = re.search(r"os_error_code='(\d+)'", str(error))
        reason = os.strerror(int(system[1])) if system else " ".join(str(error).split())[:200]
        return UserError(
            f"a checkpoint could not be written to {str(self.directory)!r}: {reason}; "
            "make room and start the same command again"
        )


def _trees(state: TrainState) -> dict[str, Any]:
    # Orbax refuses to save an empty tree.
    return {name: getattr(state, name) for name in TREES if jax.tree.leaves(getattr(state, name))}


def _on_first_device(leaf: Any) -> jax.ShapeDtypeStruct:
    # Without a placement of ours Orbax wants the device of the saver, and a run from a GPU would not open on a CPU.
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)
