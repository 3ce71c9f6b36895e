"""python -m archirf_jax.plan --config=configs/dit_rf.py:imagenet64 --device=h200 --devices=8

What a training needs: arithmetic, memory of each device, time, and what makes it fit. Opens no data, needs no device.
"""

from __future__ import annotations

from absl import flags, logging
from ml_collections import config_flags

from archirf_jax.launch import cli
from archirf_jax.launch import config as configuration
from archirf_jax.tasks import footprint, planning
from archirf_jax.tasks.building import resolve_class_embeddings
from archirf_jax.training import devices

CONFIG = config_flags.DEFINE_config_file(
    "config", help_string="configs/NAME.py or configs/NAME.py:VARIANT", lock_config=True
)
DEVICE = flags.DEFINE_string("device", None, "h100, h200, a100-80, rtx4090, tpu-v5e, ...", required=True)
DEVICES = flags.DEFINE_integer("devices", 1, "how many of them", lower_bound=1)
UTILISATION = flags.DEFINE_float(
    "utilisation", 0.4, "share of their peak that they reach", lower_bound=0.001, upper_bound=1
)
NUM_CLASSES = flags.DEFINE_integer(
    "num_classes", 1000, "classes of the data, where config.data.num_classes is 0", lower_bound=1
)
flags.mark_flag_as_required("config")


def main(argv: list[str]) -> None:
    """Check, plan, say."""
    del argv
    config, device = CONFIG.value, devices.find(DEVICE.value)
    configuration.check(config)
    footprint.simulate()
    if not config.data.num_classes:
        config.data.num_classes = NUM_CLASSES.value
        logging.info("taking %d classes, as --num_classes says", NUM_CLASSES.value)
    resolve_class_embeddings(config)
    plan = planning.make(config, device, DEVICES.value)
    for line in planning.lines(plan, UTILISATION.value):
        logging.info("%s", line)


if __name__ == "__main__":
    cli.run(main)
