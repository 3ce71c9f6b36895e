"""A latent cache as a source: what an autoencoder made of every image of a set, memory-mapped."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from typing import Any

import numpy as np

from archirf_jax import untrusted
from archirf_jax.data import kept_texts
from archirf_jax.data.digests import digest
from archirf_jax.data.fields.latents import NAME
from archirf_jax.errors import UserError

HEADER, MOMENTS, LABELS, TEXTS = "latents.json", "moments.npy", "labels.npy", "texts.npz"  # the first is written last


@dataclasses.dataclass(frozen=True)
class Header:
    """What a cache says of itself.

    Attributes:
        images: `config.data` of the images that it was made of.
        autoencoder: digest of the run that made it.
        examples: how many images.
        shape: (h, w, D) of one image's latents.
        views: 2 with those of mirrored images, else 1.
        distribution: whether they are means and logarithms of variances.
        class_names: name of each label; [] for a set without labels.
        images_digest: of the images' source.
        mean, std: of the latents that a diffusion model learns, one a channel, over the whole set.
        texts: names of the features that hold texts, such as captions; [] for a set without.
    """

    images: dict[str, Any]
    autoencoder: str
    examples: int
    shape: list[int]
    views: int
    distribution: bool
    class_names: list[str]
    images_digest: str
    mean: list[float]
    std: list[float]
    texts: list[str] = dataclasses.field(default_factory=list)


class LatentSource:
    """The cache in a folder.

    Raises:
        UserError: there is none, it is not finished, or its files do not fit together.
    """

    checked = True

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.header = _header(folder)
        self.class_names, self.texts = list(self.header.class_names), list(self.header.texts)
        found = (self.header.examples, self.header.views, *self.header.shape)
        self._moments = _mapped(folder / MOMENTS, found, np.float16)
        self._labels = _mapped(folder / LABELS, (self.header.examples,), np.int32) if self.class_names else None

    def __len__(self) -> int:
        return self.header.examples

    def __getitem__(self, index: int) -> dict[str, Any]:
        raw: dict[str, Any] = {NAME: self._moments[index]}
        return raw if self._labels is None else raw | {"label": int(self._labels[index])}

    def captions(self, index: int, feature: str = "caption") -> list[str]:
        """Texts of the image, as its set had them."""
        if feature not in self.texts:
            has = (
                ", ".join(self.texts)
                or "none; run prepare_data again, with the same flags, which adds those of the set"
            )
            raise UserError("data.fields", feature, f"is not a text of this latent cache; it has {has}")
        return self._texts[index][feature]

    @functools.cached_property
    def _texts(self) -> list[kept_texts.Texts]:
        try:
            return kept_texts.read(self.folder / TEXTS, len(self), self.texts)
        except untrusted.Unreadable as e:
            raise UserError("data.name", str(self.folder / TEXTS), f"does not fit {HEADER}: {e}") from e

    def describe(self, index: int) -> str:
        """The number of the example."""
        return f"latent {index} in {self.folder}"

    def digest(self) -> str:
        """A digest of the images' own, the autoencoder's and the statistics."""
        header = self.header
        return digest([header.images_digest, header.autoencoder, header.views, header.mean, header.std])

    def fields(self, flip: bool) -> dict[str, Any]:
        """`config.data.fields` of the cache."""
        moments = {"name": "latents", "shape": tuple(self.header.shape), "views": self.header.views, "flip": flip}
        return {NAME: moments}


def _header(folder: pathlib.Path) -> Header:
    path = folder / HEADER
    if not path.exists():
        unfinished = (folder / MOMENTS).exists()
        what = "is not finished; run the same prepare_data again" if unfinished else "is not a latent cache"
        advice = "" if unfinished else f" (it has no {HEADER}); name its place or make one: prepare_data --autoencoder"
        raise UserError("data.name", f"latents:{folder}", f"{what}{advice}")
    try:
        values = untrusted.read_json(path)
        header = Header(**values)
        _check(header)
    except (ValueError, TypeError) as e:
        what = f"has a damaged {HEADER}: {' '.join(str(e).split())[:200]}"
        raise UserError("data.name", f"latents:{folder}", what) from e
    return header


def _check(header: Header) -> None:
    kinds = {"images": dict, "autoencoder": str, "images_digest": str, "distribution": bool}
    for field in dataclasses.fields(header):
        kind = kinds.get(field.name, list if field.name not in ("examples", "views") else int)
        if not isinstance(getattr(header, field.name), kind):
            raise ValueError(f"{field.name} is not of the type {kind.__name__}")
    if not all(isinstance(number, int) and number > 0 for number in (header.examples, header.views, *header.shape)):
        raise ValueError("examples, views and shape are not positive integers")
    if not all(isinstance(name, str) for name in header.texts):
        raise ValueError("texts are not names")
    channels = header.shape[-1] // (2 if header.distribution else 1)
    if len(header.shape) != 3 or not len(header.mean) == len(header.std) == channels:
        raise ValueError("shape is not (h, w, D), or mean and std are not one a channel")
    if not np.all(np.isfinite([*header.mean, *header.std])) or min(header.std) <= 0:
        raise ValueError("mean and std are not finite, or a channel is constant")


def _mapped(path: pathlib.Path, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    try:
        return untrusted.map_array(path, shape, dtype)
    except untrusted.Unreadable as e:
        raise UserError("data.name", str(path), f"does not fit {HEADER}: {e}") from e
