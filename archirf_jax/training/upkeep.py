"""What a training does between two dispatches: previews, checkpoints, reports, and errors that say what is left."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging

from archirf_jax import sharding
from archirf_jax.contracts import Feed, Frozen, Network, Task, TrainState
from archirf_jax.errors import UserError, nearest
from archirf_jax.training import devices, flops, guard, overrides, power_ema, replay
from archirf_jax.training.checkpoints import Checkpoints, MetricsState
from archirf_jax.training.initial_weights import Weights
from archirf_jax.training.meter import STOPPED, Meter, Row, Stopped
from archirf_jax.training.preemption import StopRequest
from archirf_jax.training.profiling import Profile
from archirf_jax.training.start import mark
from archirf_jax.training.state import purpose_key
from archirf_jax.training.step_runner import StepRunner
from archirf_jax.training.writers import CLOCKED, Events, MetricsFile, Progress, Writer
from archirf_jax.visuals import pictures

TOO_LARGE = (
    "the device's memory does not suffice; the command plan says what fits: a smaller batch_size, more "
    "accumulation, model.remat, mesh.fsdp"
)


def check_best(config: Any, metrics: Collection[str]) -> None:
    """Raise a UserError if checkpoints are to be kept by a metric that a training with these metrics does not have."""
    best, names = config.checkpoint.best_metric, {*metrics, *CLOCKED} - {STOPPED}
    if config.checkpoint.keep_best and best not in names:
        message = f"is not a metric of this training{nearest(best, names)}; there are {', '.join(sorted(names))}"
        raise UserError("checkpoint.best_metric", best, message)


class Upkeep:
    """What a training holds and what it does between two dispatches; arguments as of `loop.train`.

    Attributes:
        state: set before `_open`. meter, progress: set by it.
        first: whether this process writes and logs.
        main, ema: the main network and its averages' configuration.
        kept: the checkpoints, and snapshots for averages after training where there are any.
        periods: steps between reports, previews and saves.
    """

    state: TrainState
    meter: Meter
    progress: Progress | None

    def __init__(
        self,
        task: Task,
        feed: Feed,
        config: Any,
        workdir: pathlib.Path,
        frozen: Frozen | None,
        again: str,
        stop: StopRequest,
        profile: Profile,
        writers: Sequence[Writer] = (),
        still_ours: Callable[[], None] = lambda: None,
        weights: Weights | None = None,
    ) -> None:
        self.task, self.feed, self.config, self.workdir, self.again = task, feed, config, workdir, again
        self.stop, self.profile, self.writers, self.still_ours = stop, profile, list(writers), still_ours
        self.mesh, self.weights = sharding.from_config(config), weights
        self.first = jax.process_index() == 0
        self.main = next(iter(task.updates))
        self.ema = overrides.of_network(config, self.main).ema
        self.runner = StepRunner(task, feed, config.seed, frozen, self.mesh)
        self.checkpoints = Checkpoints(workdir / "checkpoints", config.checkpoint)
        self.snapshots = Checkpoints(workdir / "snapshots", 0) if self.ema.sigma_rel else None
        self.kept = [self.checkpoints, *([self.snapshots] if self.snapshots else [])]
        self.preview_key = purpose_key(config.seed, "preview")
        self.periods = [config.log.every_steps, config.sample.every_steps, config.checkpoint.every_steps]
        self.periods += [self.ema.snapshot_steps] if self.snapshots else []

    def _open(self, step: int) -> None:
        """Open what is written to, and go on with the metrics at a step."""
        log = self.config.log
        self.progress = Progress(step, self.config.steps) if self.first else None
        if self.first and self.progress:
            self.still_ours()
            events = [Events(self.workdir / "tensorboard", step)] if log.tensorboard else []
            self.writers = [MetricsFile(self.workdir, step), *events, *self.writers, self.progress]
        self.meter = Meter(self._report, log.every_steps, self.config.steps, self.config.batch_size)
        self.meter.go_on(*self.checkpoints.metrics_state(step))
        if self.snapshots:  # of a run that came further, perhaps on another way
            self.snapshots.forget_after(int(self.state.networks[self.main].guard.updates))

    def _finish(self) -> None:
        """Wait for what is being saved, and say whether the last updates were skipped."""
        with self._tolerating(False):
            for one in self.kept:
                one.wait()
            mark(self.workdir, self.checkpoints)
        if skipped := self._skipped_in_a_row():
            logging.warning("the last %d updates were skipped, see `skipped` in metrics.jsonl", skipped)

    def _pause(self, step: int, stopping: bool) -> None:
        """What is to be done between two dispatches."""
        config, last = self.config, step == self.config.steps
        sampling = last or step % config.sample.every_steps == 0
        saving = last or stopping or step % config.checkpoint.every_steps == 0
        snapping = self.snapshots and (last or step % self.ema.snapshot_steps == 0)
        with self._tolerating(not config.checkpoint.required):
            for one in self.kept:
                one.check()
            mark(self.workdir, self.checkpoints)
        if not (sampling or saving or snapping):
            return
        self.meter.settle()
        with self.meter.paused():
            self.still_ours()
            tolerant = not (config.checkpoint.required or last or stopping)
            if sampling:
                images = self.task.preview(self.state, self.runner.frozen, self.preview_key)
                with self._tolerating(tolerant):
                    self._write_preview(images, step)
            if snapping:
                with self._tolerating(tolerant):
                    self._save_snapshot()
            # While updates are being skipped the state may be corrupt, and must not replace a good checkpoint.
            if saving and (last or stopping or not self._skipped_in_a_row()):
                with self._tolerating(tolerant):
                    metrics = MetricsState(self.meter.latest, self.meter.unreported())
                    self.checkpoints.save(self.state, self.config.to_dict(), metrics)

    def _skipped_in_a_row(self) -> int:
        return max(int(network.guard.in_a_row) for network in self.state.networks.values())

    def _save_snapshot(self) -> None:
        """Store the power-function averages, unless a restarted run has stored those of so many updates before."""
        assert self.snapshots is not None
        network = self.state.networks[self.main]
        updates = network.guard.updates
        if int(updates) not in (0, *self.snapshots.steps()):
            averages = {name: network.averages[name] for name in map(power_ema.item, self.ema.sigma_rel)}
            state = TrainState(step=updates, networks={self.main: Network(params={}, averages=averages, opt=())})
            self.snapshots.save(state, self.config.to_dict())

    def _write_preview(self, images: np.ndarray | None, step: int) -> None:
        if self.first and images is not None:
            named = pictures.grid(images, self.row_names(len(images)))
            pictures.save_png(named, self.workdir / "samples" / f"{step:08}.png")

    def row_names(self, rows: int) -> Sequence[str]:
        """The names of the rows of a preview; none unless each row has one."""
        names: Sequence[str] = getattr(self.task, "row_names", ())[:rows]
        return names if len(names) == rows else ()

    def _report(self, step: int, row: Row) -> None:
        if self.first:
            self.still_ours()
            for writer in self.writers:
                with self._tolerating(not self.config.checkpoint.required):
                    writer.write(step, row)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn what ends a run into an error that says what is left; close all that writes."""
        answered = True
        try:
            yield
        except Stopped as e:
            raise self._keep_step(e) from e
        except OSError as e:
            raise UserError(self._left(f"{str(self.workdir)!r} cannot be written: {e}; make room")) from e
        except (jax.errors.JaxRuntimeError, ValueError) as e:
            if "RESOURCE_EXHAUSTED" in str(e):
                raise UserError(self._left(TOO_LARGE)) from e
            answered = jax.process_count() == 1 or isinstance(e, UserError)  # else a sum over all processes failed
            if answered:
                raise
            raise UserError(
                f"another process of this run does not answer ({str(e).splitlines()[0][:100]}); start the same command "
                f"again in all of them; saved steps: {', '.join(map(str, self.checkpoints.steps())) or 'none'}"
            ) from e
        finally:
            if answered:  # or closing would wait for the process that is gone
                for close in [each.close for each in self.kept] + [each.close for each in self.writers]:
                    with contextlib.suppress(OSError):
                        close()

    @contextlib.contextmanager
    def _tolerating(self, tolerant: bool) -> Iterator[None]:
        """Turn what could not be written into a warning, or into an error that says what is left."""
        try:
            yield
        except (UserError, OSError) as e:
            if not tolerant:
                raise UserError(self._left(f"{e}")) from e
            logging.warning("%s; training goes on", e)
            for one in self.kept:
                one.reopen()

    def _left(self, what: str) -> str:
        return f"{what}; then start the same command again; whole checkpoints: {self.checkpoints.whole()}"

    def _keep_step(self, stopped: Stopped) -> UserError:
        """Save the step that was not done, and say how to look at it."""
        replay.keep(self.state, self.runner, self.feed, self.config, self.workdir)
        return UserError(
            f"{guard.REASONS[stopped.reason]} at step {stopped.step + 1}; its parameters, batch and key are in "
            f"{str(self.workdir / replay.FOLDER)!r}; look at it by: {self.again} --replay; to go on, add "
            f"--change_config and a lower optimizer.learning_rate or optimizer.clip_norm, or another seed; "
            f"whole checkpoints: {self.checkpoints.whole()}"
        )

    def ideal_seconds(self, chunk: Any) -> float | None:
        """Seconds a step would take if all devices did nothing but the networks' arithmetic; None = unknown device."""
        device, dtype = devices.of(jax.devices()[0]), self.config.model.get("dtype", "float32")
        if device is None or dtype not in device.peaks:
            return None

        def forward(state: TrainState, frozen: Frozen, chunk: Any) -> list[jax.Array]:
            batch, key = self.runner.batch(chunk, 0, state.step)
            parts = {name: self.task.losses(state, frozen, batch, key, name) for name in self.task.updates}
            return [losses(state.networks[name].params, drawn, 0)[0] for name, (drawn, losses) in parts.items()]

        # The backward pass multiplies twice as much; what is computed again to save memory does not count.
        count = flops.count(forward, self.state, self.runner.frozen, chunk)
        return 3 * count / (device.peaks[dtype] * self.mesh.size)
