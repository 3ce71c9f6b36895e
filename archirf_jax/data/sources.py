"""Where examples come from: a prepared TFDS set, a folder or arrays, all as "number -> raw features"."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from archirf_jax.data.digests import digest
from archirf_jax.data.fields import LATENTS
from archirf_jax.data.folder_source import CAPTION, FolderSource
from archirf_jax.data.latent_source import LatentSource
from archirf_jax.data.tfds_source import TfdsSource
from archirf_jax.data.tokenizer import Tokenizer
from archirf_jax.errors import UserError
from archirf_jax.files import expand

FOLDER = "folder:"  # begins the names of folders
ARRAYS = "arrays"  # the name of a set that was given as arrays


class Source(Protocol):
    """Random access to examples that are not decoded yet.

    Attributes:
        class_names: name of each label, in order; [] for a set without labels.
        checked: whether every example is known to be readable.
        texts: names of the features that hold texts.
    """

    class_names: list[str]
    checked: bool
    texts: list[str]

    def __len__(self) -> int:
        """Number of examples."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        """{"image": encoded bytes, path or array; "label": int where there are labels; other features as they come}."""

    def captions(self, index: int, feature: str = CAPTION) -> list[str]:
        """Texts of an example, as they were written; [] where it has none.

        Raises:
            UserError: the set does not have such a feature.
        """

    def describe(self, index: int) -> str:
        """The example's name, for messages."""

    def digest(self) -> str:
        """A digest that identifies the set; to be cheap it covers names, numbers and sizes, not pixels in files."""


class WithTexts:
    """A source around another one, whose examples hold what was made of their captions; subclasses say what.

    Attributes:
        inner: the source.
        feature: the name of the captions in the set.
        tokenizer: what made the tokens of captions; None where there are none.
    """

    def __init__(self, inner: Source, feature: str, tokenizer: Tokenizer | None) -> None:
        self.inner, self.feature, self.tokenizer = inner, feature, tokenizer
        self.class_names, self.checked, self.texts = inner.class_names, inner.checked, inner.texts

    def __len__(self) -> int:
        return len(self.inner)

    def captions(self, index: int, feature: str | None = None) -> list[str]:
        """Texts of an example, as they were written."""
        return self.inner.captions(index, feature or self.feature)

    def describe(self, index: int) -> str:
        """The example's name, for messages."""
        return self.inner.describe(index)


def open_source(name: str, *, directory: str, split: str, label_key: str | None) -> Source:
    """The set called `name`.

    Args:
        name: a TFDS name such as "cifar10" or "imagenet_resized/64x64", "folder:PATH", or "latents:PATH", a latent
            cache.
        directory: where prepared TFDS sets lie.
        split: TFDS split or part of one, such as "train[:80%]"; a folder has "train" and parts of it in percent.
        label_key: TFDS feature that holds the label, or any name for the class folders of a folder; None = no labels.

    Raises:
        UserError: unknown name, not prepared, not readable without TensorFlow, no such feature.
    """
    if name == ARRAYS:
        raise UserError("data.name", name, "were given in memory and cannot be opened again; give the arrays")
    if name.startswith(LATENTS):
        return LatentSource(expand(name.removeprefix(LATENTS), "data.name"))
    if name.startswith(FOLDER):
        return FolderSource(expand(name.removeprefix(FOLDER), "data.name"), label_key is not None, split)
    return TfdsSource(name, str(expand(directory, "data.dir")), split, label_key)


class ArraySource:
    """Images, and perhaps labels and captions, that are in memory."""

    checked = True

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray | None,
        class_names: Sequence[str],
        captions: Sequence[Sequence[str]] | None = None,
    ) -> None:
        """images (N, H, W, C) uint8, labels (N,) below len(class_names), captions (N,) of any number each."""
        self.class_names = list(class_names)
        self._captions, self.texts = captions, [] if captions is None else [CAPTION]
        self._images, self._labels = images, labels

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        raw: dict[str, Any] = {"image": self._images[index]}
        return raw if self._labels is None else raw | {"label": int(self._labels[index])}

    def captions(self, index: int, feature: str = CAPTION) -> list[str]:
        """The texts of the image."""
        if self._captions is None or feature not in self.texts:
            raise UserError("data.fields", feature, f"is not there; arrays have their texts as {CAPTION!r}, if any")
        return list(self._captions[index])

    def describe(self, index: int) -> str:
        """The number of the example."""
        return f"image {index} of the arrays"

    def digest(self) -> str:
        """A digest of every byte."""
        labels = b"" if self._labels is None else self._labels.astype(np.int32).tobytes()
        return digest([self.class_names, self._images.shape, np.ascontiguousarray(self._images).data, labels])
