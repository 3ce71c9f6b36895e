"""The numbers of the condition `size` that a user names."""

from __future__ import annotations

import re
from typing import Any

import jax.numpy as jnp

from archirf_jax.conditioners.size import Size
from archirf_jax.contracts import Batch
from archirf_jax.errors import UserError

FLAGS = ("original_size", "crop_top_left", "target_size")  # in the order of the numbers, each a vertical one first
FORMS = {"original_size": "x", "crop_top_left": ",", "target_size": "x"}  # what stands between the two
LARGEST = 2**20  # pixels a side of an original


def given(task: Any, batch: Batch, *texts: str | None) -> Batch:
    """{"size": (N, 6)} for a batch of N images; {} where the conditioner's own numbers hold.

    Args:
        task: whose conditioners may be of the size.
        batch: the fields of the images.
        texts: of FLAGS, such as "768x1024" or "0,128"; None = those of the image that is drawn.

    Raises:
        UserError: not two whole numbers, the network is not conditioned on these, or the batch has a size already.
    """
    numbers = {i: _pair(FLAGS[i], text) for i, text in enumerate(texts) if text is not None}
    if not numbers:
        return {}
    usual = next((part.numbers for part in task.conditioner.parts.values() if isinstance(part, Size)), ())
    field, text = next((FLAGS[i], texts[i]) for i in numbers)
    if len(usual) != 2 * len(FLAGS):
        raise UserError(field, text, "is for networks with the conditioner `size`, in six numbers; leave it out")
    if "size" in batch:
        raise UserError(field, text, "does not go with `size` in the file of conditions; leave one of them out")
    whole = [number for i in range(len(FLAGS)) for number in numbers.get(i, usual[2 * i : 2 * i + 2])]
    return {"size": jnp.broadcast_to(jnp.asarray(whole, jnp.float32), (len(next(iter(batch.values()))), len(whole)))}


def _pair(field: str, text: str) -> tuple[int, int]:
    between = FORMS[field]
    found = re.fullmatch(rf"(\d{{1,8}}){between}(\d{{1,8}})", text)
    if not found or max(int(found[1]), int(found[2])) > LARGEST:
        example = f"768{between}1024" if between == "x" else f"0{between}128"
        raise UserError(field, text, f"is not two whole numbers, each at most {LARGEST}, such as {example}")
    return int(found[1]), int(found[2])
