"""python -m archirf_jax.find_lr --config=configs/dit_rf.py

A learning-rate range test: a short training whose rate grows shows which one to train with. Writes a plot (lr.png) and
its numbers (lr.json). With --plot_schedule: the learning rate of every step of the configuration, without training.
"""

from __future__ import annotations

import pathlib

from absl import flags
from ml_collections import config_flags

from archirf_jax import registry, tasks
from archirf_jax.data.pipeline import load, make_feed
from archirf_jax.errors import UserError
from archirf_jax.launch import cli
from archirf_jax.launch import config as configuration
from archirf_jax.tasks.building import resolve_class_embeddings
from archirf_jax.training import range_test

CONFIG = config_flags.DEFINE_config_file(
    "config", help_string="configs/NAME.py or configs/NAME.py:VARIANT", lock_config=True
)
MIN = flags.DEFINE_float("min", 1e-6, "first learning rate")
MAX = flags.DEFINE_float("max", 1.0, "last learning rate")
STEPS = flags.DEFINE_integer("steps", 300, "optimizer steps from one to the other", lower_bound=10, upper_bound=100_000)
OUT = flags.DEFINE_string("out", None, "plot to write, .png; default: lr.png, or schedule.png")
PLOT_SCHEDULE = flags.DEFINE_bool("plot_schedule", False, "plot the configured schedule instead; opens no data")
flags.mark_flag_as_required("config")


def main(argv: list[str]) -> None:
    """Check, then train while the rate grows, or draw the schedule."""
    del argv
    config = CONFIG.value
    out = pathlib.Path(OUT.value or ("schedule.png" if PLOT_SCHEDULE.value else "lr.png")).expanduser()
    if out.suffix != ".png":
        raise UserError(f"--out: {str(out)!r} must end in .png")
    configuration.check(config)
    if PLOT_SCHEDULE.value:
        range_test.draw_schedule(config, out)
        return
    range_test.check(MIN.value, MAX.value)
    config = range_test.prepare(config, STEPS.value)
    dataset = load(config.data)
    configuration.resolve_classes(config, len(dataset.source.class_names))
    resolve_class_embeddings(config)
    task = registry.build(tasks, "config.task", config.task, {"config": config})
    feed = make_feed(dataset, config)
    found = range_test.sweep(task, feed, config, MIN.value, MAX.value, STEPS.value)
    range_test.conclude(found, out)


if __name__ == "__main__":
    cli.run(main)
