"""The size of the image and its place in the photograph that it was cut from (Podell et al. 2023, SDXL, Sec. 2.2)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from archirf_jax.contracts import Batch, Condition, Frozen

SCORED = 5  # numbers, of which the last is a score


@dataclasses.dataclass(frozen=True)
class Size:
    """Attributes:
    numbers: "size" of a batch that holds none: pixels of the photograph's height and width, of the top and left of
        the cut, and of the height and width that it is scaled to; or a score of beauty in place of the last two.
    null_numbers: what stands for no condition; None = the size is never dropped.
    usual: what is drawn has these numbers, and not those of examples of a data set.
    """

    numbers: tuple[float, ...]
    null_numbers: tuple[float, ...] | None = None
    usual = frozenset({"size"})

    def __call__(self, frozen: Frozen, batch: Batch, keys: jax.Array) -> Condition:
        """{"size": (B, n) float32}."""
        del frozen
        usual = jnp.broadcast_to(jnp.asarray(self.numbers, jnp.float32), (len(keys), len(self.numbers)))
        return {"size": batch["size"].astype(jnp.float32) if "size" in batch else usual}

    def null(self, frozen: Frozen) -> Condition:
        """The numbers of no condition, where there are such."""
        del frozen
        return {} if self.null_numbers is None else {"size": jnp.asarray(self.null_numbers, jnp.float32)}

    def at_size(self, height: int, width: int) -> Size:
        """The conditioner of images of this size, which are neither scaled nor cut any more than others."""
        own = float(height), float(width)

        def changed(numbers: tuple[float, ...] | None) -> tuple[float, ...] | None:
            if numbers is None:
                return None
            return (*own, *numbers[2:4], *(numbers[4:] if len(numbers) == SCORED else own))

        numbers = changed(self.numbers)
        assert numbers is not None, "there are always some"
        return Size(numbers, changed(self.null_numbers))


def build(
    data: Any,
    original: Sequence[int] | None = None,
    crop: Sequence[int] = (0, 0),
    target: Sequence[int] | None = None,
    score: float | None = None,
    null_score: float | None = None,
) -> Size:
    """The conditioner for images of `config.data`.

    Args:
        data: `config.data`.
        original: height and width of the photograph; None = of the images.
        crop: top and left of the cut.
        target: height and width that it is scaled to; None = of the images.
        score: of beauty, which takes the place of `target`; None = there is none.
        null_score: that of no condition.
    """
    own = (data.image_size,) * 2

    def with_score(value: float | None) -> tuple[float, ...]:
        last = tuple(target or own) if value is None else (value,)
        return tuple(float(each) for each in (*(original or own), *crop, *last))

    return Size(with_score(score), None if null_score is None else with_score(null_score))
