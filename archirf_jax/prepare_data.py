"""python -m archirf_jax.prepare_data --name=cifar10 --dir=data

Download and write a TFDS data set in array_record, once, so that training reads it without TensorFlow.
"""

from __future__ import annotations

import os

from absl import flags, logging

from archirf_jax.data.sources import load_builder
from archirf_jax.errors import UserError
from archirf_jax.launch import cli

NAME = flags.DEFINE_string("name", None, "TFDS name, such as digits, cifar10 or imagenet_resized/64x64", required=True)
DIR = flags.DEFINE_string("dir", "data", "folder for prepared data sets")


def prepare(name: str, directory: str) -> None:
    """Write the set `name` under `directory`; a set already there is left as it is.

    Raises:
        UserError: unknown name, TensorFlow needed and absent, or the download failed.
    """
    if name.startswith("folder:"):
        raise UserError(f"--name: {name!r} needs no preparation; train with --config.data.name={name}")
    builder = load_builder(name, os.path.expanduser(directory))
    try:
        builder.download_and_prepare()
    except ImportError as e:
        if "tensorflow" not in str(e):
            raise
        raise UserError(
            f"--name: {name!r} needs TensorFlow to be prepared (not to be trained on); install it by: pip install tensorflow"
        ) from e
    except OSError as e:
        raise UserError(f"--name: {name!r} could not be prepared: {' '.join(str(e).split())[:300]}") from e
    splits = ", ".join(f"{split} {info.num_examples:,}" for split, info in builder.info.splits.items())
    logging.info("%s is ready in %s: %s", name, builder.data_path, splits)


def main(argv: list[str]) -> None:
    """Flags only."""
    del argv
    prepare(NAME.value, DIR.value)


if __name__ == "__main__":
    cli.run(main)
