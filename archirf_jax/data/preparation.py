"""Preparing a TFDS data set: downloaded and written in array_record, once."""

from __future__ import annotations

import os
from typing import Any

from absl import logging

from archirf_jax.data.sources import load_builder
from archirf_jax.errors import UserError


def prepare(name: str, directory: str) -> None:
    """Write the set `name` under `directory`; a set already there is left as it is.

    Raises:
        UserError: unknown name, a package or files needed and absent, or the download failed.
    """
    if name.startswith("folder:"):
        raise UserError(f"--name: {name!r} needs no preparation; train with --config.data.name={name}")
    builder = load_builder(name, os.path.expanduser(directory), "--name")
    try:
        builder.download_and_prepare()
    except _expected_errors() as e:
        reason = _reason(e, builder)
        if reason is None:
            raise
        raise UserError(f"--name: {name!r} {reason}") from e
    splits = ", ".join(f"{split} {info.num_examples:,}" for split, info in builder.info.splits.items())
    logging.info("%s is ready in %s: %s", name, builder.data_path, splits)


def _expected_errors() -> tuple[type[Exception], ...]:
    from tensorflow_datasets import download

    checksum, extraction = download.download_manager.NonMatchingChecksumError, download.extractor.ExtractError
    return ImportError, AssertionError, OSError, download.DownloadError, checksum, extraction


def _reason(error: Exception, builder: Any) -> str | None:
    """What a person has to know; None where it is no fault of theirs."""
    if isinstance(error, ImportError):
        package = _missing(error)
        if package == "tensorflow":
            return "needs TensorFlow to be prepared (not to be trained on); install it by: pip install tensorflow"
        return package and f"needs the Python module {package!r} to be prepared; install the package that holds it"
    # TFDS asserts that the files which only a person can fetch are there.
    if isinstance(error, AssertionError) and not builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        return None
    return f"could not be prepared: {' '.join(str(error).split())[:300]}"


def _missing(error: BaseException | None) -> str | None:
    """The absent package behind an error; TFDS raises import errors anew with longer messages but without the name."""
    while error is not None:
        if isinstance(error, ModuleNotFoundError) and error.name:
            return error.name.split(".")[0]
        error = error.__cause__
    return None
