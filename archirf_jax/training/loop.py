"""The one training loop. It knows nothing of networks or noise: a task gives `init`, `step`, `preview`, `animate`.

Order of operations, which resuming relies on:
    1. restore the newest checkpoint, or initialise
    2. advance up to the next boundary (log, sample, checkpoint, end) or until a signal asks to stop
    3. at a boundary: read the metrics (a NaN stops here), write the sample grid, then save
    4. after the last step: wait for the last save, then make the closing pictures
Whatever is drawn or ordered depends on the seed and the step number alone, and the number of steps a dispatch runs is
an argument of one compiled program, so a run that stopped anywhere goes on bit for bit.
"""

from __future__ import annotations

import contextlib
import functools
import pathlib
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from clu import parameter_overview

from archirf_jax.errors import UserError
from archirf_jax.training.checkpoints import Checkpoints
from archirf_jax.training.meter import Meter, Row
from archirf_jax.training.preemption import StopRequest
from archirf_jax.training.state import TrainState, purpose_key
from archirf_jax.training.writers import Metrics, Progress, read_metrics
from archirf_jax.visuals import pictures, plots

DISPATCH_SECONDS = 2.0  # a dispatch is kept about this short, so that a signal is heard soon

Advance = Callable[[TrainState, Any, int], tuple[TrainState, dict[str, jax.Array]]]


class Task(Protocol):
    """What the loop asks of a task."""

    def init(self, key: jax.Array) -> TrainState:
        """The state before the first step."""

    def step(self, state: TrainState, batch: Any, key: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
        """One update and its scalar metrics, "loss" among them."""

    def preview(self, state: TrainState, key: jax.Array) -> np.ndarray:
        """(rows, columns, H, W, C) uint8 pictures."""

    def animate(self, state: TrainState, key: jax.Array) -> np.ndarray:
        """(frames, rows, columns, H, W, C) uint8 pictures."""


class Feed(Protocol):
    """What the loop asks of the data (`data.pipeline`)."""

    dispatch: int

    def chunk(self, step: int, n: int) -> Any:
        """What `batch` needs for n steps from `step` on."""

    def batch(self, chunk: Any, i: jax.Array, key: jax.Array) -> Any:
        """The chunk's i-th batch."""

    def close(self) -> None:
        """Release what the feed holds."""


def make_advance(task: Task, feed: Feed, seed: int) -> Advance:
    """A compiled function that runs n <= feed.dispatch steps; metrics are (feed.dispatch,), the first n filled."""
    step_key, flip_key = purpose_key(seed, "step"), purpose_key(seed, "flip")

    def one(chunk: Any, i: jax.Array, state: TrainState) -> tuple[TrainState, dict[str, jax.Array]]:
        batch = feed.batch(chunk, i, jax.random.fold_in(flip_key, state.step))
        return task.step(state, batch, jax.random.fold_in(step_key, state.step))

    @functools.partial(jax.jit, donate_argnums=0)
    def advance(state: TrainState, chunk: Any, n: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
        _, shapes = jax.eval_shape(one, chunk, jnp.int32(0), state)
        rows = {name: jnp.zeros((feed.dispatch,), value.dtype) for name, value in shapes.items()}

        def body(i: jax.Array, carry: Any) -> Any:
            state, rows = carry
            state, metrics = one(chunk, i, state)
            return state, {name: rows[name].at[i].set(value) for name, value in metrics.items()}

        # The trip count is traced: one program for any n, hence the same bits however a run is cut into dispatches.
        return jax.lax.fori_loop(0, n, body, (state, rows))

    return advance


def train(task: Task, feed: Feed, config: Any, workdir: pathlib.Path, *, again: str) -> bool:
    """Train to `config.steps`, from the newest checkpoint in `workdir` where there is one.

    Args:
        task: what to train.
        feed: its data.
        config: steps, batch_size, seed, and the groups log, checkpoint and sample.
        workdir: the run directory.
        again: the command that resumes, for messages.

    Returns:
        True at the end, False when a signal stopped the run after a save.

    Raises:
        UserError: a metric is not finite, or a checkpoint cannot be written.
    """
    checkpoints = Checkpoints(workdir / "checkpoints", config.checkpoint.keep)
    with StopRequest() as stop:
        try:
            state = _start(task, config.seed, checkpoints)
            state = _run(task, feed, config, workdir, checkpoints, state, stop)
        finally:
            checkpoints.close()
            feed.close()
        if int(state.step) < config.steps:
            logging.info("%s: saved step %d of %d; go on by: %s", stop.name, int(state.step), config.steps, again)
            return False
        _closing_pictures(task, config, workdir, state)
    return True


def _start(task: Task, seed: int, checkpoints: Checkpoints) -> TrainState:
    init = functools.partial(task.init, purpose_key(seed, "init"))
    state = checkpoints.restore(jax.eval_shape(init))
    if state is None:
        state = jax.jit(init)()
        logging.info("%s", parameter_overview.get_parameter_overview(state.params, include_stats=False))
    else:
        logging.info("going on from the checkpoint of step %d", int(state.step))
    return state


def _run(
    task: Task,
    feed: Feed,
    config: Any,
    workdir: pathlib.Path,
    checkpoints: Checkpoints,
    state: TrainState,
    stop: StopRequest,
) -> TrainState:
    step = int(state.step)
    metrics, progress = Metrics(workdir, step, config.log.tensorboard), Progress(step, config.steps)
    advance, preview_key = make_advance(task, feed, config.seed), purpose_key(config.seed, "preview")

    def report(at: int, row: Row) -> None:
        metrics.write(at, row)
        progress.report(at, row)

    meter = Meter(report, config.log.every_steps, config.steps, config.batch_size)
    periods = (config.log.every_steps, config.sample.every_steps, config.checkpoint.every_steps)
    stopping = False
    try:
        while step < config.steps and not stopping:
            boundary = min([config.steps, *(step - step % every + every for every in periods)])
            n = min(boundary - step, feed.dispatch, max(1, int(DISPATCH_SECONDS / meter.seconds_per_step)))
            state, rows = advance(state, feed.chunk(step, n), n)
            step += n
            meter.add(step, n, rows)
            progress.update(step)
            checkpoints.check()
            stopping = bool(stop.name)  # read once, so that the loop cannot end on a signal it has not saved for
            sampling = step % config.sample.every_steps == 0 or step == config.steps
            saving = step % config.checkpoint.every_steps == 0 or step == config.steps or stopping
            if sampling or saving:
                meter.settle()
                with meter.paused():
                    if sampling:
                        _write_preview(task.preview(state, preview_key), workdir, step)
                    if saving:
                        checkpoints.save(state, config.to_dict())
        metrics.close()
        checkpoints.wait()
    except (UserError, OSError) as e:
        with contextlib.suppress(OSError):
            metrics.close()
        what = (
            e if isinstance(e, UserError) else f"{str(workdir)!r} cannot be written: {e}; start the same command again"
        )
        raise UserError(f"{what}; whole checkpoints: {checkpoints.whole()}") from e
    finally:
        progress.close()
    return state


def _write_preview(images: np.ndarray, workdir: pathlib.Path, step: int) -> None:
    pictures.save_png(pictures.grid(images), workdir / "samples" / f"{step:08}.png")


def _closing_pictures(task: Task, config: Any, workdir: pathlib.Path, state: TrainState) -> None:
    rows = read_metrics(workdir)
    plots.save_loss([row["step"] for row in rows], [row["loss"] for row in rows], workdir / "loss.png")
    shown = [pictures.load_png(path) for path in sorted((workdir / "samples").glob("[0-9]*.png"))]
    if shown:
        pictures.save_gif(shown, workdir / "progress.gif")
    frames = task.animate(state, purpose_key(config.seed, "preview"))
    pictures.save_gif([pictures.grid(frame) for frame in frames], workdir / "denoising.gif")
