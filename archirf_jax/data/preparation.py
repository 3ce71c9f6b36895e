"""Preparing a TFDS data set: downloaded and written in array_record, once."""

from __future__ import annotations

import pathlib
from typing import Any

from absl import logging

from archirf_jax.data.folder_source import CAPTION
from archirf_jax.data.sources import FOLDER
from archirf_jax.data.tfds_source import TfdsSource, how_to_prepare, load_builder, one_line, read_first, text_features
from archirf_jax.data.tokenizer import FILE
from archirf_jax.data.vocabulary import of_words
from archirf_jax.errors import UserError
from archirf_jax.files import atomic_write, expand


def prepare(name: str, directory: str) -> None:
    """Write the set `name` under `directory`; a set already there is left as it is.

    Raises:
        UserError: unknown name, a package or files needed and absent, the download failed, or what is there is damaged.
    """
    if name.startswith(FOLDER):
        raise UserError("data.name", name, "is a folder of images and needs no preparation; train on it as it is")
    folder = str(expand(directory, "data.dir"))
    builder = load_builder(name, folder)
    try:
        builder.download_and_prepare()
    except _expected_errors() as e:
        reason = _reason(e, builder)
        if reason is None:
            raise
        raise UserError("data.name", name, reason) from e
    _check_prepared(name, folder)
    _make_tokenizer(builder, name, folder)
    splits = ", ".join(f"{split} {info.num_examples:,}" for split, info in builder.info.splits.items())
    logging.info("%s is ready in %s: %s", name, builder.data_path, splits)


def _check_prepared(name: str, directory: str) -> None:
    """Raise a UserError unless the set opens: TFDS takes any folder of the set's name for a prepared one."""
    builder = load_builder(name, directory)
    if not builder.info.splits:
        raise UserError(
            "data.name",
            name,
            f"is incomplete; delete {str(builder.data_path)!r}, then {how_to_prepare(name, directory)}",
        )
    for split, info in builder.info.splits.items():
        if info.num_examples:
            read_first(builder, split, name, directory)


def _make_tokenizer(builder: Any, name: str, directory: str) -> None:
    """Write the tokenizer of the words of a set's captions beside it, unless one is there already."""
    path = pathlib.Path(builder.data_path, FILE)
    if path.exists() or CAPTION not in text_features(builder.info.features):
        return
    split = "train" if "train" in builder.info.splits else next(iter(builder.info.splits))
    source = TfdsSource(name, directory, split, None)
    texts = [text for index in range(len(source)) for text in source.captions(index, CAPTION)]
    try:
        atomic_write(path, of_words(texts).content)
    except OSError as e:
        logging.warning("the tokenizer of the captions is not kept in %s: %s", path.parent, e.strerror or e)


def _expected_errors() -> tuple[type[Exception], ...]:
    from tensorflow_datasets import download

    checksum, extraction = download.download_manager.NonMatchingChecksumError, download.extractor.ExtractError
    # array_record raises RuntimeError where the disk is full.
    return ImportError, AssertionError, OSError, RuntimeError, download.DownloadError, checksum, extraction


def _reason(error: Exception, builder: Any) -> str | None:
    """The cause in words for the user; None where it is an error of the program."""
    if isinstance(error, ImportError):
        package = _missing(error)
        if package == "tensorflow":
            return "needs TensorFlow to be prepared (not to be trained on); install it by: pip install tensorflow"
        return package and f"needs the Python module {package!r} to be prepared; install the package that holds it"
    # TFDS asserts that the files which have to be fetched by hand are there.
    if isinstance(error, AssertionError) and not builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        return None
    return f"could not be prepared: {one_line(error)}"


def _missing(error: BaseException | None) -> str | None:
    """The absent package behind an error; TFDS raises import errors anew with longer messages but without the name."""
    while error is not None:
        if isinstance(error, ModuleNotFoundError) and error.name:
            return error.name.split(".")[0]
        error = error.__cause__
    return None
