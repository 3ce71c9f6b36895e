"""Checkpoints of a run, written in the background, whole or not at all; `items` says what they are made of.

Each item is readable without the others. Besides the networks' there are `config`, `networks` (their names, the main
one first) and `metrics_state`: the last row of metrics, and the sums that the next row begins with.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pathlib
import re
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from absl import logging

from archirf_jax import sharding
from archirf_jax.contracts import TrainState
from archirf_jax.errors import UserError
from archirf_jax.files import check_run_directory
from archirf_jax.training import checksums, copies, items, retention
from archirf_jax.training.items import Items

METRICS, NETWORKS, CONFIG = "metrics_state", "networks", "config"
NONE = -1  # no step


class MetricsState(NamedTuple):
    """What the metrics of a run were at a checkpoint.

    Attributes:
        row: the last row.
        unreported: name -> [sum, weight] of the steps since then.
    """

    row: dict[str, float]
    unreported: dict[str, list[float]]


NO_METRICS = MetricsState({}, {})


class Checkpoints:
    """The checkpoints in `directory`.

    Args:
        directory: created when something is saved.
        keep: how many of the newest to keep, 0 for all; or `config.checkpoint` with keep, keep_best, best_metric and
            keep_every; None to read only.

    Raises:
        UserError: the directory's path cannot be written to; see `files.check_run_directory`.
    """

    def __init__(self, directory: pathlib.Path, keep: Any = None) -> None:
        self.directory = directory.absolute()
        self._keep, self._read_only = keep, keep is None
        if not self._read_only:
            check_run_directory(self.directory, "workdir")
            if self.directory.is_symlink() and not self.directory.exists():
                raise UserError("workdir", str(self.directory), "is a link to nothing; is a disk not mounted?")
        self._rows: dict[int, dict[str, float]] = {}
        self._manager = self._open()
        if getattr(keep, "keep_best", 0):
            self._rows |= {step: self.metrics_state(step).row for step in self.steps()}

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

    def save(self, state: TrainState, config: dict[str, Any], metrics: MetricsState = NO_METRICS) -> None:
        """Start writing `state` and the run's configuration; returns as soon as the values are copied.

        Args:
            state: its step names the checkpoint; its networks are in order, the main one first.
            config: of the run.
            metrics: of the run until then; the best checkpoints are known by its row.

        Raises:
            UserError: this or the write before it failed, for example because the disk is full.
        """
        if not self.directory.is_dir():  # Orbax would make another, without what the run has in it
            raise self._failed(FileNotFoundError("it is gone"))
        saved = {name: ocp.args.StandardSave(tree) for name, tree in copies.of_cpu(items.of_state(state)).items()}
        saved |= {CONFIG: ocp.args.JsonSave(config), NETWORKS: ocp.args.JsonSave({"names": list(state.networks)})}
        if metrics != NO_METRICS:
            saved[METRICS] = ocp.args.JsonSave(metrics._asdict())
        self._rows[int(state.step)] = metrics.row
        args = ocp.args.Composite(**saved)
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
        """The steps of whole checkpoints, after the write under way has ended, as text."""
        with contextlib.suppress(UserError):
            self.wait()
        return ", ".join(map(str, self.steps())) or "none"

    def reopen(self) -> None:
        """Open the checkpoints anew after a failure, if the directory can be reached."""
        self.close()
        with contextlib.suppress(OSError, ValueError):
            self._manager = self._open()

    def forget_after(self, step: int) -> None:
        """Delete the checkpoints of later steps."""
        for later in [each for each in self.steps() if each > step]:
            self._manager.delete(later)

    def restore(self, like: TrainState) -> TrainState | None:
        """The newest readable state, shaped and placed like `like` (arrays or ShapeDtypeStructs); None without any.

        A damaged checkpoint is named, moved to `damaged/` and the one before it is taken.

        Raises:
            UserError: the newest is of other networks or optimizers, or of another training; names what differs.
        """
        wanted = items.of_state(like)
        self._check_networks(wanted)
        found = self._newest(wanted)
        return None if found is None else items.to_state(like, *found)

    def check_fits(self, like: TrainState) -> None:
        """Raise a UserError that names what differs unless the newest readable state is shaped like this one."""
        wanted = items.of_state(like)
        self._check_networks(wanted)
        for step in self.steps():
            if self._damage(step, wanted) is None:
                return self._check_same(step, wanted)

    def restore_average(
        self, like: Any, step: int | None = None, name: str = "ema", network: str | None = None
    ) -> tuple[int, Any]:
        """(step, averaged parameters) of the newest readable checkpoint, or of `step`; reads nothing else.

        Args:
            like: the parameters by module, arrays or ShapeDtypeStructs.
            step: None = the newest.
            name: of the average.
            network: whose; None = the main one.

        Raises:
            UserError: there is none, or none of that name, or it is of another network.
        """
        asked, item = self._average(step, name, network)
        found = self._newest({item: like}, only=step)
        if found is None:
            raise self._unusable()
        return found[0], found[1][item]

    def average_shapes(self, step: int | None = None, name: str = "ema") -> Any:
        """Shapes of the main network's averaged parameters by module, in the newest checkpoint or that of `step`.

        Raises:
            UserError: there is no checkpoint, or no average of that name.
        """
        asked, item = self._average(step, name)
        return items.shapes(self.directory / str(asked) / item)

    def average_as_saved(self, like: Any, step: int | None = None, name: str = "ema") -> Any:
        """Shapes of `like` in the types of the average that would be read; as they are where there is none."""
        try:
            asked, item = self._average(step, name)
            return items.as_saved(self.directory / str(asked) / item, like)
        except (UserError, OSError, ValueError, LookupError):  # absent or damaged, as will be said when it is read
            return like

    def _average(self, step: int | None, name: str, network: str | None = None) -> tuple[int, str]:
        """(step, item) of an average; raises a UserError where there is none of that name."""
        if step is not None and step not in self.steps():
            raise UserError(f"no checkpoint of step {step}; there are {self.whole()}")
        if not self.steps():
            raise self._unusable()
        asked = self.steps()[0] if step is None else step
        network = network or self.networks(asked)[0]
        if name != "ema" and name not in (names := self.averages(asked, network)):
            raise UserError("ema", name, f"is not an average of this run; there are {', '.join(names)}")
        return asked, items.average(network, name)

    def read(self, name: str, like: Any, step: int, network: str | None = None) -> Any:
        """The average `name` of the checkpoint of `step`, shaped like `like`; of the main network unless named.

        Raises:
            UserError: it is absent, damaged, or of another network.
        """
        folder = self.directory / str(step)
        item = items.average(network or self.networks(step)[0], name)
        if damage := checksums.find_damage(folder, [item]):
            raise UserError(f"{str(folder)!r} is damaged or does not have {item!r}: {damage}")
        return self._read(step, {item: like})[item]

    def config(self, step: int) -> dict[str, Any]:
        """The run's configuration when the checkpoint of `step` was made; {} where it cannot be read."""
        return self._json(step, CONFIG) or {}

    def metrics_state(self, step: int) -> MetricsState:
        """The metrics of the run at the checkpoint of `step`; NO_METRICS where they are not known."""
        found = self._json(step, METRICS)
        return MetricsState(**found) if found else NO_METRICS

    def networks(self, step: int) -> list[str]:
        """The names of the networks in the checkpoint of `step`, the main one first."""
        found = self._json(step, NETWORKS)
        names = found["names"] if found else items.networks(self._folders(step))
        if not names:
            raise self._unusable()
        return list(names)

    def averages(self, step: int, network: str | None = None) -> list[str]:
        """The names of a network's averages in the checkpoint of `step`, "ema" first; None = the main network."""
        start = items.average(network or self.networks(step)[0], "")
        names = {name.removeprefix(start) for name in self._folders(step) if name.startswith(start)}
        return ["ema", *sorted(names - {"ema"})]

    def _folders(self, step: int) -> list[str]:
        folder = self.directory / str(step)
        return [path.name for path in folder.iterdir() if (path / checksums.ARRAYS).is_file()]

    def _json(self, step: int, item: str) -> dict[str, Any] | None:
        folder = self.directory / str(step)
        if not (folder / item).is_dir():
            return None
        if damage := checksums.find_damage(folder, [item]):
            logging.warning("%s of step %d cannot be read: %s", item, step, damage)
            return None
        found: dict[str, Any] = self._manager.restore(step, args=ocp.args.Composite(**{item: ocp.args.JsonRestore()}))[
            item
        ]
        return found

    def close(self) -> None:
        """Release the directory; failed writes, which `wait` reports, are not reported again."""
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

    def _damage(self, step: int, wanted: Items) -> str | None:
        folder = self.directory / str(step)
        there = checksums.items(folder)
        if there is not None and (lacking := [name for name in wanted if name not in there]):
            raise self._other(step, f"it does not have {', '.join(lacking)}")
        return checksums.find_damage(folder, wanted)

    def _check_networks(self, wanted: Items) -> None:
        for step in self.steps()[:1]:
            ours, theirs = items.networks(wanted), items.networks(checksums.items(self.directory / str(step)) or [])
            if theirs and ours != theirs:
                raise self._other(step, f"it has the networks {', '.join(theirs)}, not {', '.join(ours)}")

    def _read(self, step: int, like: Items) -> Items:
        self._check_same(step, like)
        folder = self.directory / str(step)
        like = {
            name: items.as_saved(folder / name, tree) if items.AVERAGES in name else tree for name, tree in like.items()
        }
        args = {name: ocp.args.StandardRestore(jax.tree.map(items.placed, tree)) for name, tree in like.items()}
        return dict(self._manager.restore(step, args=ocp.args.Composite(**args)).items())

    def _check_same(self, step: int, like: Items) -> None:
        for name, tree in like.items():
            if differences := items.differences(self.directory / str(step) / name, tree):
                kind = "optimizer" if name.endswith(".opt") else "network"
                raise self._other(step, f"{name} has {differences}", kind)

    def _unusable(self) -> UserError:
        return UserError(f"no usable checkpoint in {str(self.directory)!r}; train until the first one is saved")

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
