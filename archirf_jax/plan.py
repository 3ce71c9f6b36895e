"""python -m archirf_jax.plan --config=configs/dit_rf.py:imagenet64 --device=h200 --devices=8

What a training needs: arithmetic, memory of each device, time, and what makes it fit. Opens no data, needs no device.
"""

from __future__ import annotations

import dataclasses
import pathlib
import types

from archirf_jax.launch.cli import Command, write_json
from archirf_jax.launch.flags import CONFIG, JSON, Flag

COMMAND = Command(
    __doc__,
    CONFIG,
    JSON,
    Flag("device", "kind of device: h100, h200, a100-80, rtx4090, tpu-v5e, ...", required=True, example="rtx4090"),
    Flag("devices", "number of devices", int, 1, low=1),
    Flag("utilisation", "share of their peak that the devices reach", float, 0.4, low=0.001, high=1),
    Flag("num_classes", "classes, where config.data.num_classes is None", int, 1000, low=1, high=10_000_000),
    device=False,
)


def main(args: types.SimpleNamespace) -> None:
    """Check, plan, report."""
    from absl import logging

    from archirf_jax.launch import caches, fields, runs
    from archirf_jax.tasks import footprint, planning
    from archirf_jax.tasks.building import resolve
    from archirf_jax.training import devices

    config, device = args.config, devices.find(args.device)
    fields.check(config)
    footprint.simulate()
    if config.data.num_classes is None:
        logging.info("taking %d classes, as --num_classes says", args.num_classes)
    resolve(config, config.data.num_classes or args.num_classes)
    named = runs.named(config, pathlib.Path())
    caches.fit(config, named)
    plan = planning.make(config, device, args.devices, named, caches.frozen_shapes(config, named))
    for line in planning.lines(plan, args.utilisation):
        logging.info("%s", line)
    if args.json:
        write_json(dataclasses.asdict(plan) | {"fits": plan.fits(plan.tried[-1][1])})


if __name__ == "__main__":
    COMMAND.run(main)
