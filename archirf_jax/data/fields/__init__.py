"""Fields: what a batch holds of each example, and how it is decoded on the host and finished on the device.

A field is a file here that has `build`, or a module of the user's own, named in `config.data.fields`. The fields, and
the shapes of a batch, follow from the configuration alone: no data set is opened for them.
"""

from __future__ import annotations

import dataclasses
import sys
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import jax
import numpy as np

from archirf_jax import registry
from archirf_jax.errors import UserError

Arrays = dict[str, np.ndarray]
Shapes = dict[str, jax.ShapeDtypeStruct]


class Field(Protocol):
    """A part of each example.

    Attributes:
        draws: decoding is random, so that an example is decoded anew each time and its set streams.
        drawn_as: the name of the field whose key `finish` is given; without the attribute, its own.
    """

    draws: bool

    def shapes(self) -> Shapes:
        """Shapes and types of one decoded example, by name."""

    def decode(self, raw: Mapping[str, Any], rng: np.random.Generator) -> Arrays:
        """The decoded example, from all that the source has of it; rng depends on seed and place in the order alone.

        Raises:
            OSError, ValueError, SyntaxError, RuntimeError: the example cannot be read.
        """

    def finish(self, arrays: dict[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
        """What the batch holds of decoded arrays (B, ...), inside jit; key decides augmentations."""


LATENTS = "latents:"  # begins the names of latent caches, which hold no images
Fields = dict[str, Field]
FIELD = ("draws", "shapes", "decode", "finish")


def make_fields(data: Any) -> Fields:
    """The fields of `config.data` by name: image, label where there are labels, then `data.fields`.

    A latent cache has its latents instead of images, a field that `pipeline.load` adds to `data.fields`.

    Raises:
        UserError: no such field or option, or two fields that give the same name.
    """
    room = sys.modules[__name__]
    own = {name: data[name] for name in ("image_size", "channels", "flip")}
    # A saved configuration may be older than these.
    own |= {name: data.get(name) for name in ("value_range", "crop", "buckets")}
    made: Fields = {}
    if not data.name.startswith(LATENTS):
        made["image"] = registry.build(room, "data.name", "image", own)
    if data.label_key is not None:
        made["label"] = registry.build(room, "data.name", "label")
    for name, options in data.fields.items():
        if name in made:
            raise UserError(f"data.fields.{name}", message="there is such a field already; give it another name")
        if "name" not in options:
            raise UserError(f"data.fields.{name}.name", message="is missing: which kind of field it is")
        given = {option: value for option, value in options.items() if option != "name"}
        made[name] = registry.build(room, f"data.fields.{name}.name", options["name"], given, kind=FIELD)
    _refuse_doubles(made)
    return made


def shapes(fields: Fields, batch_size: int) -> Shapes:
    """Shapes and types of a finished batch."""
    decoded = {
        name: jax.ShapeDtypeStruct((batch_size, *one.shape), one.dtype)
        for field in fields.values()
        for name, one in field.shapes().items()
    }
    key = jax.eval_shape(jax.random.key, 0)
    return jax.eval_shape(lambda arrays, key: finish(fields, arrays, key), decoded, key)


def decode(fields: Fields, raw: Mapping[str, Any], seed: int, position: int) -> Arrays:
    """All decoded arrays of the example at a position of the order."""
    arrays: Arrays = {}
    for name, field in fields.items():
        arrays |= field.decode(raw, np.random.default_rng((seed, position, _number(name))))
    return arrays


def finish(fields: Fields, arrays: Mapping[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
    """The batch of decoded arrays (B, ...), inside jit."""
    batch: dict[str, jax.Array] = {}
    for name, field in fields.items():
        own_key = key if name == "image" else jax.random.fold_in(key, _number(getattr(field, "drawn_as", name)))
        batch |= field.finish({part: arrays[part] for part in field.shapes()}, own_key)
    return batch


def unflipped(fields: Fields) -> Fields:
    """The fields of a data set, whose images are not mirrored at random."""
    kept = {name: field for name, field in fields.items() if getattr(field, "flip", False)}
    return fields | {name: dataclasses.replace(field, flip=False) for name, field in kept.items()}  # type: ignore[type-var]


def centred(fields: Fields) -> Fields:
    """The fields of a data set, whose images are not cut out at random."""
    kept = {name: field for name, field in fields.items() if getattr(field, "crop", None) == "random"}
    return fields | {name: dataclasses.replace(field, crop="center") for name, field in kept.items()}  # type: ignore[type-var]


def _number(name: str) -> int:
    return zlib.crc32(name.encode())


def _refuse_doubles(fields: Fields) -> None:
    """Raise a UserError if two fields decode or finish to the same name."""
    for names in ({name: field.shapes() for name, field in fields.items()}, _finished(fields)):
        double = _first_double(names.values())
        if double is not None:
            owners = [name for name, given in names.items() if double in given]
            raise UserError(
                f"data.fields.{owners[-1]}", message=f"it gives {double!r}, which the field {owners[0]!r} gives too"
            )


def _finished(fields: Fields) -> dict[str, Shapes]:
    return {name: shapes({name: field}, 1) for name, field in fields.items()}


def _first_double(groups: Iterable[Iterable[str]]) -> str | None:
    counts = Counter(name for group in groups for name in group)
    return next((name for name, count in counts.items() if count > 1), None)
