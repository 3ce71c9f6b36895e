"""Checkpoints of a run: Orbax items `params`, `ema`, `opt`, ..., `config`, each readable without the others.

They are written in the background, whole or not at all. Every further average is an item of its own name. What the run
had told by then is one as well, `told`: its last row of metrics, and the sums that the next row begins with.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import pathlib
import re
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from absl import logging

from archirf_jax import sharding
from archirf_jax.errors import UserError
from archirf_jax.training import checksums, copies, retention
from archirf_jax.training.state import TrainState

TREES = ("params", "ema", "opt", "memory", "guard")
TOLD = "told"
NONE = -1  # no step
NAMED = 4  # parameters that differ are named up to this number
Items = dict[str, Any]


class Told(NamedTuple):
    """What a run had told at a checkpoint.

    Attributes:
        row: the last row of metrics.
        unreported: name -> [sum, weight] of the steps since then.
    """

    row: dict[str, float]
    unreported: dict[str, list[float]]


NOTHING = Told({}, {})


class Checkpoints:
    """The checkpoints in `directory`.

    Args:
        directory: created when something is saved.
        keep: how many of the newest to keep, 0 for all; or `config.checkpoint`, whose keep, keep_best, best_metric and
            keep_every say it; None to read only.
    """

    def __init__(self, directory: pathlib.Path, keep: Any = None) -> None:
        self.directory = directory.absolute()
        self._keep, self._read_only = keep, keep is None
        self._rows: dict[int, dict[str, float]] = {}
        self._manager = self._open()
        if getattr(keep, "keep_best", 0):
            self._rows |= {step: self.told(step).row for step in self.steps()}

    def _open(self) -> ocp.CheckpointManager:
        return ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=retention.policy(self._keep, self._rows),
                create=not self._read_only,
                read_only=self._read_only,
                cleanup_tmp_directories=not self._read_only,
                async_options=ocp.AsyncOptions(post_finalization_callback=self._write_checksums),
            ),
        )

    def steps(self) -> list[int]:
        """Steps that have a complete checkpoint, newest first."""
        return sorted(self._manager.all_steps(), reverse=True)

    def save(self, state: TrainState, config: dict[str, Any], told: Told = NOTHING) -> None:
        """Start writing `state` and the run's configuration; returns as soon as the values are copied.

        Args:
            state: its step names the checkpoint.
            config: of the run.
            told: by the run until then; the best are known by its row.

        Raises:
            UserError: this or the write before it failed, for example because the disk is full.
        """
        if not self.directory.is_dir():  # Orbax would make another, without what the run has in it
            raise self._failed(FileNotFoundError("it is gone"))
        items = {name: ocp.args.StandardSave(tree) for name, tree in copies.of_cpu(_items(state)).items()}
        if told != NOTHING:
            items[TOLD] = ocp.args.JsonSave(told._asdict())
        self._rows[int(state.step)] = told.row
        args = ocp.args.Composite(config=ocp.args.JsonSave(config), **items)
        try:
            self._manager.save(int(state.step), args=args, force=True)
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

    def reopen(self) -> None:
        """Begin anew after a failure, as far as the directory can be reached."""
        self.close()
        with contextlib.suppress(OSError, ValueError):
            self._manager = self._open()

    def forget_after(self, step: int) -> None:
        """Delete what is of later steps."""
        for later in [each for each in self.steps() if each > step]:
            self._manager.delete(later)

    def restore(self, like: TrainState) -> TrainState | None:
        """The newest readable state, shaped and placed like `like` (arrays or ShapeDtypeStructs); None without any.

        A damaged checkpoint is named, moved to `damaged/` and the one before it is taken.

        Raises:
            UserError: the newest is of another network, optimizer or training; names what differs.
        """
        found = self._newest(_items(like))
        if found is None:
            return None
        step, items = found
        averages = {name: items.pop(name) for name in like.averages}
        return dataclasses.replace(like, step=jax.numpy.asarray(step, "int32"), averages=averages, **items)

    def check_fits(self, like: TrainState) -> None:
        """Raise a UserError that names what differs unless the newest readable state is shaped like this one."""
        items = _items(like)
        for step in self.steps():
            if self._damage(step, items) is None:
                return self._check_same(step, items)

    def restore_ema(self, like: Any, step: int | None = None, item: str = "ema") -> tuple[int, Any]:
        """(step, averaged parameters) of the newest readable checkpoint, or of `step`; reads nothing else.

        Raises:
            UserError: there is none, or none of that name, or it is of another network.
        """
        if step is not None and step not in self.steps():
            raise UserError(f"no checkpoint of step {step}; there are {self.whole()}")
        if item != "ema" and self.steps() and item not in (names := self.averages(step or self.steps()[0])):
            raise UserError(f"there is no average {item!r} in it; there are {', '.join(names)}")
        found = self._newest({item: like}, only=step)
        if found is None:
            raise UserError(f"no usable checkpoint in {str(self.directory)!r}; train until the first one is saved")
        return found[0], found[1][item]

    def read(self, item: str, like: Any, step: int) -> Any:
        """One item of the checkpoint of `step`, shaped like `like`.

        Raises:
            UserError: it is absent, damaged, or of another network.
        """
        folder = self.directory / str(step)
        if damage := checksums.find_damage(folder, [item]):
            raise UserError(f"{str(folder)!r} is damaged or has no {item!r}: {damage}")
        return self._read(step, {item: like})[item]

    def told(self, step: int) -> Told:
        """What the run had told at the checkpoint of `step`; NOTHING where that is not known."""
        folder = self.directory / str(step)
        if not (folder / TOLD).is_dir():
            return NOTHING
        if damage := checksums.find_damage(folder, [TOLD]):
            logging.warning("the rows of metrics do not go on exactly: %s of step %d", damage, step)
            return NOTHING
        args = ocp.args.Composite(**{TOLD: ocp.args.JsonRestore()})
        return Told(**self._manager.restore(step, args=args)[TOLD])

    def averages(self, step: int) -> list[str]:
        """The names of the averages in the checkpoint of `step`, "ema" first."""
        names = {path.name for path in (self.directory / str(step)).iterdir() if (path / "_METADATA").is_file()}
        return ["ema", *sorted(names - {*TREES, "metrics"})]

    def close(self) -> None:
        """Release the directory; what `wait` has to say of failed writes is not said again."""
        with contextlib.suppress(OSError, ValueError):
            self._manager.close()

    def _newest(self, like: Items, only: int | None = None) -> tuple[int, Items] | None:
        # One process looks at the files, and moves those that are damaged, for all.
        found = sharding.agreed(self._usable(like, only) if jax.process_index() == 0 else NONE)
        if jax.process_index() > 0:
            self._manager.reload()
        return None if found == NONE else (found, self._read(found, like))

    def _usable(self, like: Items, only: int | None) -> int:
        """The newest step of which nothing is damaged, or `only` that one; NONE without any."""
        for step in self.steps() if only is None else [only]:
            damage = self._damage(step, like)
            if damage is None:
                return step
            logging.warning("the checkpoint of step %d is damaged: %s", step, damage)
            self._set_aside(step)
        return NONE

    def _damage(self, step: int, like: Items) -> str | None:
        folder = self.directory / str(step)
        if lacking := checksums.lacking(folder, like):
            raise self._other(step, f"it has no {', '.join(lacking)}")
        return checksums.find_damage(folder, like)

    def _read(self, step: int, like: Items) -> Items:
        self._check_same(step, like)
        args = {name: ocp.args.StandardRestore(jax.tree.map(_placed, tree)) for name, tree in like.items()}
        return dict(self._manager.restore(step, args=ocp.args.Composite(**args)).items())

    def _check_same(self, step: int, like: Items) -> None:
        for name, tree in like.items():
            if differences := _differences(self.directory / str(step) / name, tree):
                raise self._other(step, f"{name} has {differences}", "optimizer" if name == "opt" else "network")

    def _other(self, step: int, what: str, kind: str = "training") -> UserError:
        return UserError(
            f"the checkpoint of step {step} in {str(self.directory)!r} is of another {kind} than this one: {what}; "
            "use the code and the configuration that it was made with, or another directory"
        )

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
        return UserError(f"a checkpoint could not be written to {str(self.directory)!r}: {reason}; make room")


def _items(state: TrainState) -> Items:
    # Orbax refuses to save an empty tree.
    trees = {name: getattr(state, name) for name in TREES if jax.tree.leaves(getattr(state, name))}
    return trees | state.averages


def _differences(folder: pathlib.Path, like: Any) -> str:
    """What a saved tree has otherwise than `like`, in words; "" if nothing."""
    with ocp.StandardCheckpointer() as reader:
        saved = jax.tree.leaves(reader.metadata(folder).item_metadata.tree)
    there = {leaf.name: tuple(leaf.shape) for leaf in saved if hasattr(leaf, "shape")}
    leaves = jax.tree_util.tree_leaves_with_path(like)
    here = {jax.tree_util.keystr(path, simple=True, separator="."): tuple(leaf.shape) for path, leaf in leaves}
    told = [f"{name} that is none here" for name in there if name not in here]
    told += [f"no {name}" for name in here if name not in there]
    told += [
        f"{name} of shape {there[name]}, not {shape}" for name, shape in here.items() if there.get(name, shape) != shape
    ]
    more = f" and {len(told) - NAMED} more" if len(told) > NAMED else ""
    return ", ".join(told[:NAMED]) + more


def _placed(leaf: Any) -> jax.ShapeDtypeStruct:
    # Without a placement of ours Orbax wants the device of the saver, and a run from a GPU would not open on a CPU.
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
