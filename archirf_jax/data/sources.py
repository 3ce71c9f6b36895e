"""Where images come from: a prepared TFDS set or a folder, both as "number -> encoded image and label"."""

from __future__ import annotations

import importlib
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any, Protocol

from archirf_jax.data.builders import EMBEDDED
from archirf_jax.errors import UserError, nearest

Example = tuple[bytes | pathlib.Path, int]


class Source(Protocol):
    """Random access to encoded images.

    Attributes:
        class_names: name of each label, in order.
        checked: whether every image is known to be readable.
    """

    class_names: list[str]
    checked: bool

    def __len__(self) -> int:
        """Number of examples."""

    def __getitem__(self, index: int) -> Example:
        """(encoded image or its path, label)."""

    def describe(self, index: int) -> str:
        """The example's name, for messages."""


def open_source(name: str, *, directory: str, split: str, label_key: str) -> Source:
    """The set called `name`.

    Args:
        name: a TFDS name such as "cifar10" or "imagenet_resized/64x64", or "folder:PATH".
        directory: where prepared TFDS sets lie.
        split: TFDS split or part of one, such as "train[:80%]"; a folder has one only, "train".
        label_key: TFDS feature that holds the label; "" for a set without labels, which is then one class.

    Raises:
        UserError: unknown name, not prepared, not readable without TensorFlow, no such feature.
    """
    if name.startswith("folder:"):
        if split != "train":
            raise UserError(f"config.data.split: {name!r} has no split {split!r}; a folder has train alone")
        return FolderSource(pathlib.Path(name.removeprefix("folder:")).expanduser())
    return TfdsSource(name, os.path.expanduser(directory), split, label_key)


def load_builder(name: str, directory: str, field: str = "config.data.name") -> Any:
    """The TFDS builder of `name`, in array_record; `field` is what messages call the name.

    Imports nothing of TensorFlow and downloads nothing.

    Raises:
        UserError: no such set.
    """
    import tensorflow_datasets as tfds

    base = re.split("[/:]", name)[0]
    if base in EMBEDDED:
        try:
            importlib.import_module(f"archirf_jax.data.builders.{base}")
        except ImportError as e:
            raise UserError(f"{field}: {name!r} needs the package {e.name}; install it by: make data-{base}") from e
    try:
        return tfds.builder(name, data_dir=directory, file_format="array_record")
    except tfds.core.DatasetNotFoundError as e:
        allowed = {*tfds.list_builders(with_community_datasets=False), *EMBEDDED}
        raise UserError(
            f"{field}: {name!r} is no data set of TFDS, nor of this project ({', '.join(EMBEDDED)}), nor folder:PATH"
            + nearest(base, allowed)
        ) from e
    except (ValueError, AssertionError, ImportError) as e:
        if "File format is already set" in str(e):
            raise UserError(
                f"{field}: {name!r} in {directory!r} is not in array_record; "
                f"prepare it in another folder by: python -m archirf_jax.prepare_data --name={name} --dir=FOLDER"
            ) from e
        raise UserError(f"{field}: {name!r} cannot be opened: {_one_line(e)}") from e


class TfdsSource:
    """A split of a TFDS set that `prepare_data` has written in array_record."""

    checked = True

    def __init__(self, name: str, directory: str, split: str, label_key: str) -> None:
        import tensorflow_datasets as tfds

        builder = load_builder(name, directory)
        command = f"python -m archirf_jax.prepare_data --name={name} --dir={directory}"
        if not builder.info.splits:
            raise UserError(f"config.data.name: {name!r} is not prepared in {directory!r}; prepare it by: {command}")
        _check_split(builder, name, split)
        features = builder.info.features
        if "image" not in features:
            raise UserError(f"config.data.name: {name!r} has no feature 'image'; it has {', '.join(features)}")
        if label_key and label_key not in features:
            raise UserError(
                f"config.data.label_key: {name!r} has no feature {label_key!r}; it has {', '.join(features)}; "
                "set --config.data.label_key='' to train without labels"
            )
        if label_key and not isinstance(features[label_key], tfds.features.ClassLabel):
            raise UserError(f"config.data.label_key: feature {label_key!r} of {name!r} is no class label")
        self.class_names = list(features[label_key].names) if label_key else ["image"]
        self._name, self._split, self._label_key = name, split, label_key
        self._records = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
        try:
            first = self[0]
        except RuntimeError as e:
            raise UserError(
                f"config.data.name: {name!r} is damaged ({_one_line(e)}); "
                f"delete {str(builder.data_path)!r}, then prepare it by: {command}"
            ) from e
        if first[1] < 0:
            raise UserError(f"config.data.split: {split!r} of {name!r} has no labels; choose another split")

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        record = self._records[index]
        return record["image"], int(record[self._label_key]) if self._label_key else 0

    def describe(self, index: int) -> str:
        """Set, split and number of the example."""
        return f"{self._name} {self._split} example {index}"


class FolderSource:
    """A tree of images, one subfolder a class (sorted by name); a folder without subfolders is one class."""

    checked = False

    def __init__(self, path: pathlib.Path) -> None:
        if not path.is_dir():
            what = "is a file" if path.exists() else "does not exist"
            raise UserError(f"config.data.name: folder {str(path)!r} {what}")
        folders = [entry for entry in _visible(path) if entry.is_dir()]
        loose = [entry for entry in _visible(path) if entry.is_file()]
        if folders and loose:
            raise UserError(
                f"config.data.name: {str(path)!r} has class folders and also {len(loose)} files beside them, "
                f"such as {loose[0].name!r}; move each into a class folder"
            )
        self.class_names = [folder.name for folder in folders] or [path.absolute().name]
        self._examples: Sequence[tuple[pathlib.Path, int]] = [
            (file, label) for label, folder in enumerate(folders or [path]) for file in _files(folder)
        ]
        empty = set(range(len(self.class_names))) - {label for _, label in self._examples}
        if empty:
            names = ", ".join(self.class_names[label] for label in sorted(empty))
            raise UserError(
                f"config.data.name: no images in {str(path)!r} for class {names}; add some or remove the folder"
            )

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Example:
        return self._examples[index]

    def describe(self, index: int) -> str:
        """The file's path."""
        return str(self._examples[index][0])


def _check_split(builder: Any, name: str, split: str) -> None:
    try:
        count, reason = builder.info.splits[split].num_examples, "it is empty"
    except (KeyError, ValueError) as e:
        count, reason = 0, _one_line(e).partition(" See format")[0]
    if count <= 0:
        allowed = builder.info.splits
        raise UserError(
            f"config.data.split: {name!r} has no split {split!r} ({reason}); "
            f"it has {', '.join(allowed)} and parts such as {next(iter(allowed))}[:80%]"
        )


def _visible(path: pathlib.Path) -> list[pathlib.Path]:
    return sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    found: list[pathlib.Path] = []
    for entry in _visible(folder):
        found += _files(entry) if entry.is_dir() else [entry]
    return found


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
