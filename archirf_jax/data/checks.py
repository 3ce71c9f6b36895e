"""Which files of a folder were found readable, kept between starts so that each file is checked once.

A check is kept under the folder, its split and what decides whether an image can be decoded. It holds a stamp of every
readable file, which changes with its name, size or time of modification: what is new or changed is checked again, and
so is what could not be read.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pathlib
import secrets
from typing import Any

import numpy as np
import PIL
from absl import logging

from archirf_jax import untrusted
from archirf_jax.data.fields import Fields, unflipped
from archirf_jax.data.fields.caption import Caption
from archirf_jax.data.fields.text_states import TextStates
from archirf_jax.data.folder_source import UNKNOWN, FolderSource
from archirf_jax.data.sources import Source
from archirf_jax.files import atomic_write, cache

VERSION = "1"  # of what is kept
DECIDED_HERE = {"image", "label"}  # fields that read nothing but the image itself; captions are read by then


@dataclasses.dataclass(eq=False)
class Checks:
    """What is known of the examples of a source.

    Attributes:
        passed: (N,) whether an example is known to be readable.
        stamps: (N,) of the files; None where nothing is kept.
        path: where the stamps of those that passed are kept.
    """

    passed: np.ndarray
    stamps: np.ndarray | None = None
    path: pathlib.Path | None = None

    def keep(self) -> None:
        """Write what is known, whole or not at all; a place that cannot be written costs time alone."""
        if self.path is None or self.stamps is None:
            return
        known = self.stamps[self.passed & (self.stamps != UNKNOWN)]
        # Several runs may come to it at once, also on machines that share the folder.
        part = self.path.with_name(f"{self.path.name}.{secrets.token_hex(4)}.part")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(self.path, lambda file: np.savez(file, stamps=known), part)
        except OSError as e:
            logging.warning("the check of the images is not kept in %s: %s", self.path.parent, e.strerror or e)
            self.path = None


def recall(source: Source, fields: Fields) -> Checks:
    """What earlier starts found; nothing for sets that are not folders, and where other fields decide as well."""
    passed = np.zeros(len(source), bool)
    while hasattr(source, "inner"):
        source = source.inner
    others = [field for name, field in fields.items() if name not in DECIDED_HERE]
    if not isinstance(source, FolderSource) or not all(isinstance(field, Caption | TextStates) for field in others):
        return Checks(passed)
    stamps, path = source.stamps(), _place(source, fields)
    return Checks(np.isin(stamps, _read(path)) & (stamps != UNKNOWN), stamps, path)


def _place(source: FolderSource, fields: Fields) -> pathlib.Path:
    decides: tuple[Any, ...] = VERSION, PIL.__version__, os.path.realpath(source.path), source.split
    name = hashlib.sha256(repr((*decides, unflipped(fields)["image"])).encode(errors="surrogateescape")).hexdigest()
    return cache("folders") / f"{name[:32]}.npz"


def _read(path: pathlib.Path) -> np.ndarray:
    """The stamps kept in a file; none where it is absent or damaged."""
    try:
        stamps = untrusted.read_arrays(path)["stamps"]
    except (untrusted.Unreadable, KeyError):
        return np.empty(0, np.uint64)
    return stamps if stamps.dtype == np.uint64 and stamps.ndim == 1 else np.empty(0, np.uint64)
