"""The learning-rate range test (Smith 2017, "Cyclical Learning Rates for Training Neural Networks", Sec. 3.3).

A short training whose rate grows geometrically shows where learning begins and where it breaks down. The loss of a
diffusion model is noisy, because times and noise are drawn anew at each step; so what is measured is not the loss of
the step's own batch but that of one batch with one draw of times, noise and dropped conditions, the same after every
step: differences along the curve are differences of the parameters.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from archirf_jax import sharding
from archirf_jax.contracts import Batch, Feed, Frozen, Task, TrainState
from archirf_jax.errors import UserError
from archirf_jax.training.initial_weights import Weights
from archirf_jax.training.optimizers import make_schedule
from archirf_jax.training.start import fresh
from archirf_jax.training.step_runner import StepRunner
from archirf_jax.training.update import divided
from archirf_jax.training.writers import Progress
from archirf_jax.visuals import plots

SMOOTHED = 0.1  # decades of the rate that the moving average of the losses remembers
DIVERGED = 2.0  # a loss that is above its lowest by so many times the first one ends the sweep
FALL = 0.02  # a loss that falls by less than this share of the first one has learned nothing
RISE = 1 / 3  # share of the whole fall that a loss loses again at the edge
BACK = 10.0  # how far below the edge the suggestion is
REPORTS = 10
LEAST = 1e-30  # rate; float32 has little below it
DRAWN = 100_000  # most points of a plotted schedule
NOT_FINITE, TOO_HIGH = "the loss or its gradient was not finite", "the loss diverged"


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The losses of a sweep by rate.

    Attributes:
        rates: (N,) in the order of the steps.
        losses: (N,) of the measured batch, after the step of each rate.
        first: its loss before the first step.
        smoothed: (N,) `losses` without their jitter.
        ended: why the sweep ended before its last step; "" if it did not.
    """

    rates: np.ndarray
    losses: np.ndarray
    first: float
    smoothed: np.ndarray
    ended: str = ""


@dataclasses.dataclass(frozen=True)
class Suggestion:
    """Landmarks of a sweep as rates, None where the sweep does not show one.

    Attributes:
        rate: the suggested maximum.
        steepest: where the smoothed loss falls fastest.
        lowest: where it is lowest.
        edge: the highest rate before it has risen again by RISE of its fall.
        why: the reason, for people.
    """

    rate: float | None
    steepest: float | None
    lowest: float | None
    edge: float | None
    why: str


def check(low: float, high: float) -> None:
    """Raise a UserError unless LEAST <= low < high, finite."""
    if not LEAST <= low < high < math.inf:
        raise UserError("min", low, f"must be {LEAST:g} or more and below max={high:g}, both finite")


def prepare(config: Any, low: float, high: float, steps: int) -> Any:
    """The configuration of a sweep: a geometric schedule, no averages besides the first, no stop at jumps.

    Args:
        config: of the training; it is copied.
        low, high: the first and the last rate.
        steps: how many steps lie between them (10 or more).

    Raises:
        UserError: the configuration could not be trained with, whatever the rate is.
    """
    make_schedule(config)
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.schedule.start = low
    config.schedule.name, config.schedule.warmup_steps, config.optimizer.learning_rate = "geometric", steps, high
    config.steps = 2 * steps  # how long data must last; float16 may need some steps to find its scale
    config.ema.more_decays = config.ema.sigma_rel = ()
    config.guard.jump = None
    return config


def smooth(losses: Sequence[float], memory: float) -> list[float]:
    """The exponential moving average that remembers about `memory` values, free of the bias of its start."""
    decay, total, weight, smoothed = 1 - 1 / max(memory, 1.0), 0.0, 0.0, []
    for loss in losses:
        total, weight = decay * total + loss, decay * weight + 1
        smoothed.append(total / weight)
    return smoothed


def sweep(task: Task, feed: Feed, config: Any, frozen: Frozen | None = None, weights: Weights | None = None) -> Sweep:
    """Train while the rate grows; nothing is saved.

    Args:
        task: what to train, made of `config`.
        feed: its data.
        config: as `prepare` gives it: seed, mesh, accumulation and the optimizer are those of the training.
        frozen: parameters of the frozen runs by name.
        weights: that the training begins with.
    """
    try:
        return _sweep(task, feed, config, frozen, weights)
    finally:
        feed.close()


def _sweep(task: Task, feed: Feed, config: Any, frozen: Frozen | None, weights: Weights | None) -> Sweep:
    low, high, steps = config.schedule.start, config.optimizer.learning_rate, config.schedule.warmup_steps
    mesh = sharding.from_config(config)
    runner = StepRunner(task, feed, config.seed, frozen, mesh)
    state = fresh(task, config.seed, runner.frozen, mesh, weights)
    # The first batch is the one that is measured; training begins with the second.
    batch, key = jax.jit(runner.batch)(feed.chunk(0, 1)[0], 0, state.step)
    measure = _measure(task, state, runner.frozen, batch, key)
    state = dataclasses.replace(state, step=jax.device_put(jnp.int32(1), sharding.whole(mesh)))
    memory = SMOOTHED * (steps - 1) / math.log10(high / low)
    first, progress = measure(state), Progress(0, steps)
    rates, losses, smoothed = list[float](), list[float](), list[float]()
    ended = "" if math.isfinite(first) else NOT_FINITE
    while len(rates) < steps and not ended:
        state, rows = runner(state, feed.chunk(int(state.step), 1)[0], 1)
        loss, (rate, done) = measure(state), np.asarray(rows["learning_rate"][0], np.float64)
        if any(int(network.guard.in_a_row) for network in state.networks.values()) or not math.isfinite(loss):
            ended = NOT_FINITE
        elif done:  # float16 takes a few steps to find its scale
            rates.append(float(rate))
            losses.append(loss)
            smoothed = smooth(losses, memory)
            ended = TOO_HIGH if smoothed[-1] - min(smoothed) > DIVERGED * abs(first) else ""
            _report(progress, len(rates), steps, smoothed[-1])
    progress.close()
    return Sweep(np.asarray(rates), np.asarray(losses), first, np.asarray(smoothed), ended)


def _drawn(task: Task, network: str, state: TrainState, frozen: Frozen, batch: Batch, key: jax.Array) -> Any:
    return task.losses(state, frozen, batch, key, network)[0]


def _measure(
    task: Task, state: TrainState, frozen: Frozen, batch: Batch, key: jax.Array
) -> Callable[[TrainState], float]:
    """state -> the main network's mean loss of what is drawn here once, computed in as many parts as in training."""
    main, update = next(iter(task.updates.items()))
    drawn = jax.jit(functools.partial(_drawn, task, main))(state, frozen, batch, key)

    @jax.jit
    def mean_loss(state: TrainState, frozen: Frozen, batch: Batch, key: jax.Array, drawn: Any) -> jax.Array:
        _, losses = task.losses(dataclasses.replace(state, step=jnp.int32(0)), frozen, batch, key, main)
        params, parts = update.projected(state.networks[main]), update.accumulation
        means = jax.lax.map(
            lambda numbered: jnp.mean(losses(params, *numbered)[0]), (divided(drawn, parts), jnp.arange(parts))
        )
        return jnp.mean(means)

    return lambda state: float(mean_loss(state, frozen, batch, key, drawn))


def _report(progress: Progress, done: int, steps: int, loss: float) -> None:
    progress.update(done)
    if done % max(1, steps // REPORTS) == 0:
        progress.write(done, {"loss": loss})


def suggest(sweep: Sweep) -> Suggestion:
    """A tenth of the rate at which the loss leaves its valley.

    The steepest place and the lowest one are common choices (Gugger 2018, "How Do You Find A Good Learning Rate",
    takes a tenth of the lowest one's, because that lies between improving and diverging). But with an optimizer that
    normalises its gradients the valley is flat, and where exactly it is lowest is chance, while its edge, where a third
    of the whole fall is lost again (RISE), is sharp: Smith (2017) too reads the maximum off where learning becomes
    worse. Training stays at its maximum for much longer than the sweep did, so Gugger's order of magnitude is kept.
    """
    rates, smoothed = sweep.rates, sweep.smoothed
    fall = sweep.first - np.min(smoothed) if len(smoothed) else 0.0
    if fall <= FALL * abs(sweep.first) or not math.isfinite(sweep.first):
        ended = f" and the sweep ended at {rates[-1]:.2g}: {sweep.ended}" if sweep.ended and len(rates) else ""
        why = f"the loss never fell {FALL:.0%} below its first value {sweep.first:.4g}{ended}"
        return Suggestion(None, None, None, None, why)
    bottom = int(np.argmin(smoothed))
    slopes = np.diff(smoothed, prepend=sweep.first)[: bottom + 1]
    risen = np.flatnonzero(smoothed[bottom:] > smoothed[bottom] + RISE * fall)
    edge = float(rates[bottom + risen[0] - 1] if len(risen) else rates[-1])
    why = f"a tenth of {edge:.2g}, beyond which the loss leaves its valley"
    if not len(risen) and not sweep.ended:
        why = (
            f"a tenth of {edge:.2g}, where the sweep ended without a rise of the loss; a higher maximum may allow more"
        )
    return Suggestion(float(f"{edge / BACK:.2g}"), float(rates[np.argmin(slopes)]), float(rates[bottom]), edge, why)


def conclude(sweep: Sweep, out: pathlib.Path) -> Suggestion:
    """Write the plot into `out` (.png) and the numbers next to it (.json); log what they mean."""
    found = suggest(sweep)
    out.parent.mkdir(parents=True, exist_ok=True)
    plots.save_range_test(sweep.rates, sweep.losses, sweep.smoothed, sweep.first, dataclasses.asdict(found), out)
    first = sweep.first if math.isfinite(sweep.first) else None  # JSON has no NaN
    lists = {name: getattr(sweep, name).tolist() for name in ("rates", "losses", "smoothed")}
    numbers = {"suggestion": dataclasses.asdict(found), "first": first, "ended": sweep.ended}
    out.with_suffix(".json").write_text(json.dumps(numbers | lists, indent=1) + "\n")
    if sweep.ended and len(sweep.rates):
        logging.info("the sweep ended at a rate of %.2g: %s", sweep.rates[-1], sweep.ended)
    logging.info("wrote %s and %s", out, out.with_suffix(".json"))
    if found.rate is None:
        logging.info("no suggestion: %s", found.why)
    else:
        logging.info("suggested maximum: optimizer.learning_rate=%g (%s)", found.rate, found.why)
        logging.info(
            "train with it: add --config.optimizer.learning_rate=%g to the command of archirf_jax.main", found.rate
        )
    return found


def schedule_points(config: Any) -> tuple[np.ndarray, np.ndarray]:
    """(steps (N,), counted from 1, their learning rates (N,)) of the configured schedule, thinned evenly if very many.

    Raises:
        UserError: as `make_schedule`.
    """
    schedule = make_schedule(config)
    done = np.linspace(0, config.steps - 1, min(config.steps, DRAWN)).round().astype(np.int32)
    done = np.union1d(done, np.int32(np.clip(config.schedule.warmup_steps - 1, 0, config.steps - 1)))
    rates = jax.jit(jax.vmap(lambda i: jnp.asarray(schedule(i), jnp.float32)))(done)
    return done + 1, np.asarray(rates)


def draw_schedule(config: Any, out: pathlib.Path) -> None:
    """Write the plot of the configured schedule; raises as `schedule_points`."""
    steps, rates = schedule_points(config)
    out.parent.mkdir(parents=True, exist_ok=True)
    plots.save_schedule(steps, rates, config.schedule.warmup_steps, config.batch_size, out)
    logging.info("wrote %s", out)
