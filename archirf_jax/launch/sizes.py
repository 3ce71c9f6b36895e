"""Height and width of what is drawn, and the numbers of the condition `size` that a user names."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from archirf_jax.conditioners.size import Size
from archirf_jax.contracts import Batch
from archirf_jax.errors import UserError

FLAGS = ("original_size", "crop_top_left", "target_size")  # in the order of the numbers, each a vertical one first
LARGEST, WIDEST = 2**20, 2**13  # pixels a side of an original, and of what is drawn


def drawn(text: str | None) -> tuple[int, int] | None:
    """Height and width that --size asks for; None = the run's squares.

    Raises:
        UserError: not two whole numbers, or an image without pixels.
    """
    sides = None if text is None else _pair("size", text)
    if sides is not None and not 1 <= min(sides) <= max(sides) <= WIDEST:
        raise UserError("size", text, f"must be 1 to {WIDEST} pixels high and wide")
    return sides


def given(task: Any, batch: Batch, sides: tuple[int, int] | None, *texts: str | None) -> Batch:
    """{"size": (N, 6)} for a batch of N images; {} where the conditioner's own numbers hold.

    Args:
        task: whose conditioners may be of the size.
        batch: the fields of the images.
        sides: of the images that are drawn, as of `drawn`; they are the original's and the target's, too.
        texts: of FLAGS, each two numbers such as "768,1024"; None = those of the image that is drawn.

    Raises:
        UserError: not two whole numbers, the network is not conditioned on these, or the batch has a size already.
    """
    numbers = {i: _pair(FLAGS[i], text) for i, text in enumerate(texts) if text is not None}
    usual = next((part.numbers for part in task.conditioner.parts.values() if isinstance(part, Size)), ())
    if sides is not None and len(usual) == 2 * len(FLAGS) and "size" not in batch:
        numbers = {0: sides, 2: sides} | numbers
    if not numbers:
        return {}
    field, text = next(((FLAGS[i], texts[i]) for i in numbers if texts[i] is not None), ("size", ""))
    if len(usual) != 2 * len(FLAGS):
        raise UserError(field, text, "is for networks with the conditioner `size`, in six numbers; leave it out")
    if "size" in batch:
        raise UserError(field, text, "does not go with `size` in the file of conditions; leave one of them out")
    whole = [number for i in range(len(FLAGS)) for number in numbers.get(i, usual[2 * i : 2 * i + 2])]
    return {"size": jnp.broadcast_to(jnp.asarray(whole, jnp.float32), (len(next(iter(batch.values()))), len(whole)))}


def _pair(field: str, text: str) -> tuple[int, int]:
    found = [int(part) for part in text.split(",") if part.isdecimal() and len(part) < 9]
    if len(found) != 2 or text.count(",") != 1 or max(found) > LARGEST:
        raise UserError(field, text, f"is not two whole numbers, each at most {LARGEST}, such as 768,1024")
    return found[0], found[1]
