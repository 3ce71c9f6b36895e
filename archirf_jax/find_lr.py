"""python -m archirf_jax.find_lr --config=configs/dit_rf.py

A learning-rate range test: a short training whose rate grows shows which one to train with. Writes a plot (lr.png) and
its numbers (lr.json). With --plot_schedule: the learning rate of every step of the configuration, without training.
"""

from __future__ import annotations

import dataclasses
import pathlib
import types

from archirf_jax.errors import UserError
from archirf_jax.launch.cli import Command, write_json
from archirf_jax.launch.flags import CONFIG, JSON, Flag

COMMAND = Command(
    __doc__,
    CONFIG,
    JSON,
    Flag("min", "first learning rate", float, 1e-6),
    Flag("max", "last learning rate", float, 1.0),
    Flag("steps", "optimizer steps from one to the other", int, 300, low=10, high=100_000),
    Flag("out", "plot to write, .png; default: lr.png, or schedule.png", pathlib.Path),
    Flag("plot_schedule", "plot the configured schedule instead; opens no data", bool, False),
)


def main(args: types.SimpleNamespace) -> None:
    """Check, then train while the rate grows, or draw the schedule."""
    from archirf_jax.data.feeds import make_feed
    from archirf_jax.data.pipeline import load
    from archirf_jax.files import check_output
    from archirf_jax.launch import caches, fields, runs, training
    from archirf_jax.tasks.building import make_task, resolve
    from archirf_jax.training import range_test

    out = args.out or pathlib.Path("schedule.png" if args.plot_schedule else "lr.png")
    if out.suffix != ".png":
        raise UserError("out", str(out), "must end in .png")
    fields.check(args.config)
    if args.plot_schedule:
        check_output(out, "out", ".png")
        range_test.draw_schedule(args.config, out)
        return
    range_test.check(args.min, args.max)
    config = range_test.prepare(args.config, args.min, args.max, args.steps)
    dataset = load(config.data)
    resolve(config, dataset.num_classes or 1)
    frozen_runs = runs.named(config, pathlib.Path())
    caches.fit(config, frozen_runs)
    frozen = caches.frozen_params(config, frozen_runs)
    task, feed = make_task(config, frozen_runs), make_feed(dataset, config)
    check_output(out, "out", ".png")
    found = range_test.sweep(task, feed, config, frozen, training.initial_weights(config, task))
    suggestion = range_test.conclude(found, out)
    if args.json:
        write_json(dataclasses.asdict(suggestion))


if __name__ == "__main__":
    COMMAND.run(main)
