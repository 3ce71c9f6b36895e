"""The one training loop. It knows nothing of networks or noise: a task gives `init`, `step`, `preview`, `animate`.

Order of operations, which resuming relies on:
    1. restore the newest checkpoint, or initialise; compile
    2. advance up to the next boundary (log, sample, snapshot, checkpoint, end) or until a signal asks to stop
    3. at a boundary: read the metrics (a stop of the guard is found here), write the sample grid, then save
    4. after the last step: wait for the last save, then make the closing pictures
Whatever is drawn or ordered depends on the seed and the step number alone, and the number of steps a dispatch runs is
an argument of one compiled program, so a run that stopped anywhere goes on bit for bit.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Collection, Iterator
from typing import Any

import jax
import numpy as np
from absl import logging
from clu import parameter_overview
from jax.sharding import Mesh

from archirf_jax import sharding
from archirf_jax.errors import UserError, nearest
from archirf_jax.training import devices, flops, guard, power_ema, replay
from archirf_jax.training.advance import Advance, Feed, Task
from archirf_jax.training.checkpoints import Checkpoints, Told
from archirf_jax.training.meter import STOPPED, Meter, Row, Stopped
from archirf_jax.training.preemption import StopRequest
from archirf_jax.training.profiling import Profile
from archirf_jax.training.state import TrainState, purpose_key
from archirf_jax.training.writers import CLOCKED, Metrics, Progress, read_metrics
from archirf_jax.visuals import pictures, plots

TOO_LARGE = (
    "the device's memory does not suffice; python -m archirf_jax.plan says what fits: a smaller batch_size, more "
    "accumulation, model.remat, mesh.fsdp"
)
DISPATCH_SECONDS = 2.0  # a dispatch is kept about this short, so that a signal is heard soon


def train(
    task: Task, feed: Feed, config: Any, workdir: pathlib.Path, *, again: str, profile: Profile | None = None
) -> bool:
    """Train to `config.steps`, from the newest checkpoint in `workdir` where there is one.

    Args:
        task: what to train.
        feed: its data.
        config: steps, batch_size, seed, and the groups log, checkpoint, sample, ema and mesh.
        workdir: the run directory.
        again: the command that resumes, for messages.
        profile: which steps to record.

    Returns:
        True at the end, False when a signal stopped the run after a save.

    Raises:
        UserError: the guard stopped the run, or a checkpoint cannot be written.
    """
    with StopRequest() as stop:
        try:
            state = Loop(task, feed, config, workdir, again, stop, profile or Profile(workdir)).run()
        finally:
            feed.close()
        if int(state.step) < config.steps:
            logging.info("%s: saved step %d of %d; go on by: %s", stop.name, int(state.step), config.steps, again)
            return False
        frames = task.animate(state, purpose_key(config.seed, "preview"))
        if jax.process_index() == 0:
            _write_closing_pictures(frames, workdir)
    return True


def start(task: Task, seed: int, checkpoints: Checkpoints, mesh: Mesh) -> TrainState:
    """The state of the newest checkpoint, or a fresh one, where it belongs."""
    init = functools.partial(task.init, purpose_key(seed, "init"))
    like = sharding.shaped(jax.eval_shape(init), mesh)
    state = checkpoints.restore(like)
    if state is None:
        state = jax.jit(init, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, like))()
        logging.info("%s", parameter_overview.get_parameter_overview(like.params, include_stats=False))
    else:
        logging.info("going on from the checkpoint of step %d", int(state.step))
        state = dataclasses.replace(state, step=jax.device_put(state.step, sharding.whole(mesh)))
    return state


class Loop:
    """One run, from its start to its end or to a signal; arguments as of `train`."""

    def __init__(
        self,
        task: Task,
        feed: Feed,
        config: Any,
        workdir: pathlib.Path,
        again: str,
        stop: StopRequest,
        profile: Profile,
    ) -> None:
        self.task, self.feed, self.config, self.workdir, self.again = task, feed, config, workdir, again
        self.mesh, self.stop, self.profile = sharding.from_config(config), stop, profile
        self.first = jax.process_index() == 0  # the process that writes and tells
        self.advance = Advance(task, feed, config.seed, self.mesh)
        self.checkpoints = Checkpoints(workdir / "checkpoints", config.checkpoint)
        self.snapshots = Checkpoints(workdir / "snapshots", 0) if config.ema.stds else None
        self.kept = [self.checkpoints, *([self.snapshots] if self.snapshots else [])]
        self.preview_key = purpose_key(config.seed, "preview")
        self.periods = [config.log.every_steps, config.sample.every_steps, config.checkpoint.every_steps]
        self.periods += [config.ema.snapshot_steps] if self.snapshots else []

    def run(self) -> TrainState:
        """Steps from the newest checkpoint to the last, or to a signal; the state is saved then."""
        abandoned = False
        try:
            self._run()
        except Stopped as e:
            raise self._looked_at(e) from e
        except OSError as e:
            raise UserError(self._left(f"{str(self.workdir)!r} cannot be written: {e}; make room")) from e
        except (jax.errors.JaxRuntimeError, ValueError) as e:
            if "RESOURCE_EXHAUSTED" in str(e):
                raise UserError(self._left(TOO_LARGE)) from e
            abandoned = jax.process_count() > 1 and not isinstance(e, UserError)  # a sum over all processes failed
            if not abandoned:
                raise
            raise UserError(
                f"another process of this run does not answer ({str(e).splitlines()[0][:100]}); start the same command "
                f"again in all of them; saved steps: {', '.join(map(str, self.checkpoints.steps())) or 'none'}"
            ) from e
        finally:
            if not abandoned:  # or closing would wait for the process that is gone
                for one in self.kept:
                    one.close()
        return self.state

    def _run(self) -> None:
        self.state = start(self.task, self.config.seed, self.checkpoints, self.mesh)
        log, step = self.config.log, int(self.state.step)
        self.progress = Progress(step, self.config.steps) if self.first else None
        self.metrics = Metrics(self.workdir, step, log.tensorboard) if self.first else None
        self.meter = Meter(self._report, log.every_steps, self.config.steps, self.config.batch_size)
        self.meter.go_on(*self.checkpoints.told(step))
        if self.snapshots:  # of a run that came further, perhaps on another way
            self.snapshots.forget_after(int(self.state.guard.updates))
        with self.profile:
            self._steps(step)
        if self.metrics and self.progress:
            self.progress.close()
            self.metrics.close()
        with self._tolerating(False):
            for one in self.kept:
                one.wait()
        if int(self.state.guard.in_a_row):
            logging.warning(
                "the last %d updates were skipped, see `skipped` in metrics.jsonl", self.state.guard.in_a_row
            )

    def _steps(self, step: int) -> None:
        stopping, compiled = False, False
        while step < self.config.steps and not stopping:
            n = self._length(step)
            with self.meter.waiting():
                chunk = self.feed.chunk(step, n)
            if not compiled:
                with self.meter.paused():
                    self.meter.once["compile_seconds"] = self.advance.compile(self.state, chunk)
                    self.meter.ideal_seconds = self._ideal_seconds(chunk)
                compiled = True
            self.profile.begin(step, self.state)
            self.state, rows = self.advance(self.state, chunk, n)
            self._check_best({*rows, *CLOCKED} - {STOPPED})
            step += n
            self.profile.end(step, self.state)
            self.meter.add(step, n, rows)
            if self.progress:
                self.progress.update(step)
            # Read once, so that the loop cannot end on a signal that it has not saved for.
            stopping = self.stop.heard()
            self._pause(step, stopping)

    def _ideal_seconds(self, chunk: Any) -> float | None:
        """Seconds a step would take if all devices did nothing but the network's arithmetic; None = unknown device."""
        device, dtype = devices.of(jax.devices()[0]), self.config.model.dtype
        if device is None or dtype not in device.peaks:
            return None

        def forward(state: TrainState, chunk: Any) -> jax.Array:
            batch, key = self.advance.batch(chunk, 0, state.step)
            return self.task.losses(key)(state.params, self.task.draw(state, batch, key), 0)[0]

        # The backward pass multiplies twice as much; what is computed again to save memory does not count.
        return 3 * flops.count(forward, self.state, chunk) / (device.peaks[dtype] * self.mesh.size)

    def _length(self, step: int) -> int:
        """How many steps the next dispatch runs."""
        ends = [step - step % every + every for every in self.periods]
        boundary = min([self.config.steps, *ends, *self.profile.after(step)])
        fitting = max(1, int(DISPATCH_SECONDS / self.meter.seconds_per_step))
        return sharding.agreed(min(boundary - step, self.feed.dispatch, fitting))

    def _pause(self, step: int, stopping: bool) -> None:
        """What is to be done between two dispatches."""
        config, last = self.config, step == self.config.steps
        sampling = last or step % config.sample.every_steps == 0
        saving = last or stopping or step % config.checkpoint.every_steps == 0
        noting = self.snapshots and (last or step % config.ema.snapshot_steps == 0)
        with self._tolerating(not config.checkpoint.required):
            for one in self.kept:
                one.check()
        if not (sampling or saving or noting):
            return
        self.meter.settle()
        with self.meter.paused():
            tolerant = not (config.checkpoint.required or last or stopping)
            if sampling:
                images = self.task.preview(self.state, self.preview_key)
                with self._tolerating(tolerant):
                    self._write_preview(images, step)
            if noting:
                with self._tolerating(tolerant):
                    self._note()
            # What may be ruined does not take the place of what is not: skipped updates may end in a stop of the guard.
            if saving and (last or stopping or not int(self.state.guard.in_a_row)):
                with self._tolerating(tolerant):
                    self._save()

    def _save(self) -> None:
        told = Told(self.meter.latest, self.meter.unreported())
        self.checkpoints.save(self.state, self.config.to_dict(), told)

    def _note(self) -> None:
        """Keep the power-function averages, whose clock are the updates; a run that comes here again does not."""
        assert self.snapshots is not None
        updates = self.state.guard.updates
        if int(updates) not in (0, *self.snapshots.steps()):
            averages = {name: self.state.averages[name] for name in map(power_ema.item, self.config.ema.stds)}
            state = TrainState(step=updates, params={}, ema={}, opt=(), averages=averages)
            self.snapshots.save(state, self.config.to_dict())

    def _write_preview(self, images: np.ndarray, step: int) -> None:
        if self.first:
            pictures.save_png(pictures.grid(images), self.workdir / "samples" / f"{step:08}.png")

    def _check_best(self, names: Collection[str]) -> None:
        best = self.config.checkpoint.best_metric
        if self.config.checkpoint.keep_best and best not in names:
            told = f"{nearest(best, names)}; there are {', '.join(sorted(names))}"
            raise UserError(f"config.checkpoint.best_metric: there is no {best!r}{told}")

    def _report(self, step: int, row: Row) -> None:
        if self.metrics and self.progress:
            with self._tolerating(not self.config.checkpoint.required):
                self.metrics.write(step, row)
            self.progress.report(step, row)

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

    def _looked_at(self, stopped: Stopped) -> UserError:
        """Keep the step that was not done, and say how to look at it."""
        replay.keep(self.state, self.advance, self.feed, self.config, self.workdir)
        return UserError(
            f"{guard.REASONS[stopped.reason]} at step {stopped.step + 1}; its parameters, batch and key are in "
            f"{str(self.workdir / replay.FOLDER)!r}; look at it by: {self.again} --replay; to go on, add "
            f"--change_config and a lower optimizer.learning_rate or optimizer.clip_norm, or another seed; "
            f"whole checkpoints: {self.checkpoints.whole()}"
        )


def _write_closing_pictures(frames: np.ndarray, workdir: pathlib.Path) -> None:
    rows = [row for row in read_metrics(workdir) if "loss" in row]
    plots.save_loss([row["step"] for row in rows], [row["loss"] for row in rows], workdir / "loss.png")
    shown = [pictures.load_png(path) for path in sorted((workdir / "samples").glob("[0-9]*.png"))]
    if shown:
        pictures.save_gif(shown, workdir / "progress.gif")
    pictures.save_gif([pictures.grid(frame) for frame in frames], workdir / "denoising.gif")
