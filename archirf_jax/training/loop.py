"""The one training loop. It knows nothing of networks or noise: see `contracts.Task` and `contracts.Feed`.

Order of operations, which resuming relies on:
    1. restore the newest checkpoint, or initialise; compile
    2. run steps up to the next boundary (log, sample, snapshot, checkpoint, end) or until a signal asks to stop
    3. at a boundary: read the metrics (a stop of a guard is found here), write the sample grid, then save
    4. after the last step: wait for the last save, then make the closing images
Whatever is random or ordered depends on the seed and the step number alone, and the number of steps a dispatch runs is
an argument of one compiled program, so a run that stopped anywhere goes on bit for bit.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from absl import logging

from archirf_jax import sharding
from archirf_jax.contracts import Feed, Frozen, Task, TrainState
from archirf_jax.training import closing, devices
from archirf_jax.training.initial_weights import Weights
from archirf_jax.training.preemption import StopRequest
from archirf_jax.training.profiling import Profile
from archirf_jax.training.start import start
from archirf_jax.training.upkeep import Upkeep, check_best
from archirf_jax.training.writers import Writer

DISPATCH_SECONDS = 2.0  # a dispatch is kept about this short, so that a signal is answered soon


def train(
    task: Task,
    feed: Feed,
    config: Any,
    workdir: pathlib.Path,
    frozen: Frozen | None = None,
    *,
    again: str,
    profile: Profile | None = None,
    writers: Sequence[Writer] = (),
    still_ours: Callable[[], None] = lambda: None,
    weights: Weights | None = None,
    hard_exit: bool = False,
) -> bool:
    """Train to `config.steps`, from the newest checkpoint in `workdir` where there is one.

    Args:
        task: what to train.
        feed: its data.
        config: steps, batch_size, seed, and the groups log, checkpoint, sample, ema and mesh.
        workdir: the run directory.
        frozen: parameters of the frozen runs by name.
        again: how to resume, for messages.
        profile: which steps to record.
        writers: take the rows of metrics as well; they are closed at the end.
        still_ours: called before anything is written; raises where the directory belongs to another run by now.
        weights: that a fresh run begins with; see `initial_weights`.
        hard_exit: a second signal ends the process at once; otherwise it raises KeyboardInterrupt.

    Returns:
        True at the end, False when a signal stopped the run after a save.

    Raises:
        UserError: a guard stopped the run, or something cannot be written.
    """
    logging.info("%s", devices.describe(config.model.get("dtype", "float32")))
    with StopRequest(hard_exit) as stop:
        options = profile or Profile(workdir), writers, still_ours, weights
        loop = Loop(task, feed, config, workdir, frozen, again, stop, *options)
        try:
            state = loop.run()
        finally:
            feed.close()
        if int(state.step) < config.steps:
            logging.info("%s: saved step %d of %d; go on by: %s", stop.name, int(state.step), config.steps, again)
            return False
        frames = task.preview(state, loop.runner.frozen, loop.preview_key, 1)
        figures = closing.figures(task, state, loop.runner.frozen, workdir)
        if loop.first:
            still_ours()
            names = () if frames is None else loop.row_names(frames.shape[1])
            closing.write(frames, figures, workdir, names)
    return True


class Loop(Upkeep):
    """One run, from its start to its end or to a signal; arguments as of `Upkeep`."""

    def run(self) -> TrainState:
        """Steps from the newest checkpoint to the last, or to a signal; the state is saved then."""
        with self._explained():
            self._run()
        return self.state

    def _run(self) -> None:
        where = self.checkpoints, self.mesh, self.workdir
        self.state = start(self.task, self.config.seed, self.runner.frozen, *where, self.weights)
        self.weights = None
        step = int(self.state.step)
        self._open(step)
        with self.profile:
            self._steps(step)
        self._finish()

    def _steps(self, step: int) -> None:
        stopping = False
        while step < self.config.steps and not stopping:
            with self.meter.waiting():
                chunk, n = self.feed.chunk(step, self._length(step))
            self._compile(chunk)
            self.profile.begin(step, self.state)
            self.state, rows = self.runner(self.state, chunk, n)
            check_best(self.config, rows)
            step += n
            self.profile.end(step, self.state)
            self.meter.add(step, n, rows)
            if self.progress:
                self.progress.update(step)
            # Read once, so that the loop cannot end on a signal that it has not saved for.
            stopping = self.stop.requested()
            self._pause(step, stopping)

    def _compile(self, chunk: Any) -> None:
        """Compile for a chunk of a new shape."""
        with self.meter.paused():
            if seconds := self.runner.compile(self.state, chunk):
                self.meter.once["compile_seconds"] = self.meter.once.get("compile_seconds", 0.0) + seconds
                self.meter.ideal_seconds = self.ideal_seconds(chunk)

    def _length(self, step: int) -> int:
        """How many steps the next dispatch runs at most."""
        ends = [step - step % every + every for every in self.periods]
        boundary = min([self.config.steps, *ends, *self.profile.after(step)])
        fitting = max(1, int(DISPATCH_SECONDS / self.meter.seconds_per_step))
        return sharding.agreed(min(boundary - step, self.feed.dispatch, fitting))
