"""A source, and how its examples are decoded."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from archirf_jax.data import fields as field_functions
from archirf_jax.data.digests import digest
from archirf_jax.data.fields import Arrays, Fields
from archirf_jax.data.fields.image import SIDES
from archirf_jax.data.images import UNREADABLE
from archirf_jax.data.sources import Source
from archirf_jax.data.tokenizer import Tokenizer
from archirf_jax.errors import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A set that is open and checked.

    Attributes:
        source: its raw examples.
        fields: how they are decoded and finished.
        readable: (N,) numbers in the source, unreadable examples left out.
        arrays: decoded examples (N, ...) by name; None where the set streams, because it is too large or a field draws.
        settings: `config.data` as it was given.
    """

    source: Source
    fields: Fields
    readable: np.ndarray
    arrays: Arrays | None
    settings: dict[str, Any]

    def __len__(self) -> int:
        return len(self.readable)

    @property
    def class_names(self) -> list[str]:
        """Name of each label; [] for a set without labels."""
        return self.source.class_names

    @property
    def num_classes(self) -> int | None:
        """Number of classes; None for a set without labels."""
        return len(self.class_names) if self.class_names else None

    @property
    def image_size(self) -> int:
        """Pixels a side."""
        return self.fields["image"].shapes()["image"].shape[0]

    @property
    def channels(self) -> int:
        """1 (grey) or 3 (RGB)."""
        return self.fields["image"].shapes()["image"].shape[-1]

    @property
    def digest(self) -> str:
        """The set's digest: that of its source and of which examples are left out."""
        whole = self.source.digest()
        return whole if len(self) == len(self.source) else digest([whole, self.readable.tobytes()])

    @property
    def tokenizer(self) -> Tokenizer | None:
        """What made the tokens of the captions; None for a set that was opened without them."""
        return getattr(self.source, "tokenizer", None)

    def captions(self, numbers: Sequence[int]) -> list[list[str]]:
        """The texts of readable examples, as they were written; [] for one without.

        Raises:
            UserError: the set has no captions.
        """
        return [self.source.captions(int(self.readable[number])) for number in numbers]

    def config(self) -> dict[str, Any]:
        """The mapping for `config.data` that opens this set again."""
        return copy.deepcopy(self.settings)

    def centred(self) -> Dataset:
        """The set with its images cut out of the middle where training cuts them out at random."""
        fields = field_functions.centred(self.fields)
        return self if fields == self.fields else dataclasses.replace(self, fields=fields)

    def example(self, number: int, seed: int = 0, position: int = 0, sides: tuple[int, int] | None = None) -> Arrays:
        """Decoded arrays of the readable example `number`; a field that draws depends on seed and position.

        `sides` are height and width of the image; None = it is a square.

        Raises:
            UserError: it cannot be read any more.
        """
        index = int(self.readable[number])
        more = {} if sides is None else {SIDES: sides}
        try:
            return field_functions.decode(self.fields, self.source[index] | more, seed, position)
        except UserError:
            raise
        except UNREADABLE as e:
            reason = " ".join(str(e).split())
            raise UserError(
                "data.name", message=f"{self.source.describe(index)} cannot be read any more ({reason}); restore it"
            ) from e
