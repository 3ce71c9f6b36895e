"""Images of another size than a network was trained on, where its layers know it."""

from __future__ import annotations

import copy
import functools
from typing import Any

from archirf_jax.conditioners.merged import Merged
from archirf_jax.errors import UserError
from archirf_jax.tasks.diffusion import Diffusion


@functools.cache  # a task lives as long as its programs
def at_size(task: Diffusion, height: int, width: int) -> Diffusion:
    """The task with the same network, whose images are of another size; conditions that name a size name this one.

    A network says by `sizes(trained)` what its sides are multiples of, and the largest, or None for any (in what is
    diffused).

    Args:
        task: of a run.
        height, width: of images, in pixels.

    Raises:
        UserError: about "size": the network does not draw images of this size.
    """
    if not isinstance(task, Diffusion):
        raise UserError("size", f"{height}x{width}", "is for runs that draw images; leave it out")
    if (height, width) == (task.config.data.image_size,) * 2:
        return task
    factor = _check(task, height, width)
    sized: Any = copy.copy(task)
    sized.shape = (height // factor, width // factor, task.shape[-1])
    sized.config = task.config.copy_and_resolve_references()
    with sized.config.unlocked():
        sized.config.data.image_size = max(height, width)  # for what memory and pictures take
    parts = task.conditioner.parts.items()
    sized.conditioner = Merged(
        {name: part.at_size(height, width) if hasattr(part, "at_size") else part for name, part in parts}
    )
    found: Diffusion = sized
    return found


def _check(task: Diffusion, height: int, width: int) -> int:
    """How many times smaller than the images what is diffused is."""
    model = getattr(task.model, "network", task.model)  # without its text encoder
    asked, sizes = f"{height}x{width}", getattr(model, "sizes", None)
    if sizes is None or len(task.shape) != 3:
        what = f"is for networks that know other sizes than their own, and {type(model).__name__} does not"
        raise UserError("size", asked, f"{what}; leave it out")
    factor = int(task.config.data.image_size) // task.shape[0]
    trained = [(factor * task.shape[0], factor * task.shape[1]), *getattr(task.fields.get("image"), "buckets", ())]
    multiple, largest = sizes(tuple(max(sides) // factor for sides in zip(*trained, strict=True)))
    unit = factor * multiple
    if min(height, width) < unit or height % unit or width % unit:
        raise UserError("size", asked, f"must be two multiples of {unit}, as the network needs")
    if largest is not None and max(height, width) > factor * largest:
        what = f"is larger than {factor * largest}x{factor * largest}, beyond which this network has no positions"
        raise UserError("size", asked, what)
    return factor
