"""Prepared TFDS sets, read without TensorFlow."""

from __future__ import annotations

import importlib
import pathlib
import re
import shlex
from typing import Any

from google.protobuf import json_format

from archirf_jax import untrusted
from archirf_jax.data.builders import EMBEDDED
from archirf_jax.data.digests import digest
from archirf_jax.errors import UserError, nearest

# Name, configuration and version; never another folder, nor a site that TFDS would ask.
NAME = re.compile(r"\w+(/(?!\.+(?:[/:]|$))[\w.,=-]+)*(:[\d.*]+)?")
TRUSTED = "tensorflow_datasets.core.features."  # TFDS imports the classes of features.json, whatever they are


def load_builder(name: str, directory: str) -> Any:
    """The TFDS builder of `name`, in array_record.

    Imports nothing of TensorFlow, downloads nothing, and runs no code that a prepared set names.

    Raises:
        UserError: no such set, or what is prepared is damaged or not to be trusted.
    """
    import tensorflow_datasets as tfds

    base = re.split("[/:]", name)[0]
    if not NAME.fullmatch(name):
        raise UserError("data.name", name, "is not a name of a data set; a folder of images is given as folder:PATH")
    _import_embedded(base)
    for part in re.split("[/:]", name):  # any of them may be a name that TFDS looks for
        _check_features(pathlib.Path(directory), part)
    try:
        return tfds.builder(name, data_dir=directory, file_format="array_record")
    except tfds.core.DatasetNotFoundError as e:
        allowed = {*tfds.list_builders(with_community_datasets=False), *EMBEDDED}
        raise UserError(
            "data.name",
            name,
            f"is not a data set of TFDS, nor of this project ({', '.join(EMBEDDED)}), nor folder:PATH"
            + nearest(base, allowed),
        ) from e
    except (json_format.ParseError, AssertionError, RuntimeError, LookupError, AttributeError) as e:  # by the place
        where = str(pathlib.Path(directory, base))
        raise UserError(
            "data.name", name, f"is damaged ({one_line(e)}); delete {where!r}, then {how_to_prepare(name, directory)}"
        ) from e
    except (ValueError, ImportError, TypeError, OSError) as e:
        if "File format is already set" in str(e):
            another = how_to_prepare(name, "FOLDER")
            raise UserError("data.name", name, f"in {directory!r} is not in array_record; {another}") from e
        raise UserError("data.name", name, f"cannot be opened: {one_line(e)}") from e


class TfdsSource:
    """A split of a TFDS set that `prepare_data` has written in array_record.

    Attributes:
        image_shape: (H, W, C), with None where images differ.
        folder: of the prepared set.
        texts: names of the features that hold texts.
    """

    checked = True

    def __init__(self, name: str, directory: str, split: str, label_key: str | None) -> None:
        builder = load_builder(name, directory)
        if not builder.info.splits:
            raise UserError("data.name", name, f"is not prepared in {directory!r}; {how_to_prepare(name, directory)}")
        count = _count(builder, name, split)
        _check_kinds(builder.info.features, name, label_key)
        features = builder.info.features
        self.class_names = list(features[label_key].names) if label_key is not None else []
        self.image_shape: tuple[int | None, ...] = features["image"].shape
        self.folder = pathlib.Path(builder.data_path)
        self.texts = text_features(features)
        self._name, self._split, self._label_key = name, split, label_key
        self._digest = digest([builder.info.full_name, split, count, self.class_names])
        self._records, first = read_first(builder, split, name, directory)
        if label_key is not None and first[label_key] < 0:
            raise UserError("data.split", split, f"of {name!r} has no labels; choose another split")

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self._records[index]
        return record if self._label_key is None else record | {"label": int(record[self._label_key])}

    def captions(self, index: int, feature: str = "caption") -> list[str]:
        """The text of an example, or its several texts."""
        if feature not in self.texts:
            what = f"is not a text of {self._name!r}; it has {', '.join(self.texts) or 'none'}"
            raise UserError("data.fields", feature, what)
        found = self._records[index][feature]
        return [text.decode("utf-8", "replace") for text in ([found] if isinstance(found, bytes) else found)]

    def describe(self, index: int) -> str:
        """Set, split and number of the example."""
        return f"{self._name} {self._split} example {index}"

    def stamps(self) -> list[tuple[str, int, int]]:
        """Name, size and nanosecond of modification of each file of records."""
        files = sorted(file for file in self.folder.iterdir() if ".array_record" in file.name)
        return [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]

    def digest(self) -> str:
        """A digest of name, version, split, number of examples and class names."""
        return self._digest


def read_first(builder: Any, split: str, name: str, directory: str) -> tuple[Any, dict[str, Any]]:
    """The records of a split, images encoded, and the first of them.

    Raises:
        UserError: the files are damaged or not there.
    """
    import tensorflow_datasets as tfds

    decoders = {"image": tfds.decode.SkipDecoding()} if "image" in builder.info.features else None
    try:
        records = builder.as_data_source(split, decoders=decoders)
        return records, records[0]
    except (RuntimeError, OSError, ValueError, IndexError) as e:
        raise UserError(
            "data.name",
            name,
            f"is damaged ({one_line(e)}); delete {str(builder.data_path)!r}, then {how_to_prepare(name, directory)}",
        ) from e
    except ImportError as e:
        raise UserError("data.name", name, f"needs a package that is not installed to be read: {one_line(e)}") from e


def text_features(features: Any) -> list[str]:
    """The features that hold a text, or several, by name."""
    import tensorflow_datasets as tfds

    inner = {name: getattr(one, "feature", one) for name, one in features.items()}  # of a sequence what it consists of
    return [name for name, one in inner.items() if isinstance(one, tfds.features.Text)]


def how_to_prepare(name: str, directory: str) -> str:
    """What to do about a set that is not there."""
    command = ["python", "-m", "archirf_jax.prepare_data", f"--name={name}", f"--dir={directory}"]
    return f"prepare it by: {shlex.join(command)}"


def one_line(error: BaseException) -> str:
    """What an error says, cut to a line."""
    return " ".join(str(error).split())[:300]


def _import_embedded(base: str) -> None:
    """Make a set of this project known to TFDS."""
    if base not in EMBEDDED:
        return
    try:
        importlib.import_module(f"archirf_jax.data.builders.{base}")
    except ImportError as e:
        raise UserError("data.name", base, f"needs the package {e.name}; install it by: make data-{base}") from e


def _check_features(directory: pathlib.Path, base: str) -> None:
    """Raise a UserError if a prepared set names classes that are not TFDS's own, before TFDS imports them."""

    def check(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        for key, value in pairs:
            names_class = key in ("type", "pythonClassName", "python_class_name") and isinstance(value, str)
            if names_class and not value.startswith(TRUSTED):
                raise UserError(
                    "data.name",
                    base,
                    f"has a feature of the class {value!r} in {str(file)!r}, and code that a data set names is not "
                    f"run; its features must be those of {TRUSTED.rstrip('.')}",
                )
        return dict(pairs)

    for file in _features_files(directory, base):
        try:
            untrusted.check_files(file.parent)
            untrusted.read_json(file, object_pairs_hook=check)
        except untrusted.Unreadable as e:
            raise UserError("data.name", base, f"is damaged ({str(file)!r}: {e}); delete that folder") from e


def _features_files(directory: pathlib.Path, base: str) -> list[pathlib.Path]:
    """features.json of every variant and version of a set, whose folder TFDS finds by either spelling of its name."""
    if not directory.is_dir():
        return []
    same = [one for one in directory.iterdir() if _bare(one.name) == _bare(base)]
    depths = ("features.json", "*/features.json", "*/*/features.json", "*/*/*/features.json")
    return [file for folder in same for depth in depths for file in folder.glob(depth)]


def _bare(name: str) -> str:
    return name.replace("_", "").lower()


def _count(builder: Any, name: str, split: str) -> int:
    """Examples in a split; raises a UserError where there are none."""
    try:
        count, reason = builder.info.splits[split].num_examples, "it is empty"
    except (KeyError, ValueError) as e:
        count, reason = 0, one_line(e).partition(" See format")[0]
    if count <= 0:
        allowed = builder.info.splits
        raise UserError(
            "data.split",
            split,
            f"is not a split of {name!r} ({reason}); it has {', '.join(allowed)} and parts such as "
            f"{next(iter(allowed))}[:80%]",
        )
    return count


def _check_kinds(features: Any, name: str, label_key: str | None) -> None:
    import tensorflow_datasets as tfds

    if "image" not in features or not isinstance(features["image"], tfds.features.Image):
        raise UserError("data.name", name, f"does not have images as the feature 'image'; it has {', '.join(features)}")
    if label_key is None:
        return
    if label_key not in features:
        raise UserError(
            "data.label_key",
            label_key,
            f"is not a feature of {name!r}; it has {', '.join(features)}; set None to train without labels",
        )
    if not isinstance(features[label_key], tfds.features.ClassLabel):
        raise UserError("data.label_key", label_key, f"is not a class label of {name!r}")
