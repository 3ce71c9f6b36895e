"""Samples of a run: one function, which commands, notebooks and previews of edits share."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from archirf_jax.contracts import Batch, Condition, Frozen
from archirf_jax.data.images import to_uint8
from archirf_jax.errors import UserError
from archirf_jax.launch.runs import Run
from archirf_jax.samplers import edits
from archirf_jax.samplers.config import SamplerConfig
from archirf_jax.samplers.sample import sample
from archirf_jax.tasks.classifier import Classifier
from archirf_jax.tasks.diffusion import Diffusion

CHANNELS = (1, 3)  # of what can be looked at; anything else stays float32
EDITS = ("between_noises", "between_images", "from_image", "fill")
# Fields of process and data in which a run that guides may differ from the guided one.
DIFFERING = {"weak_workdir": (), "classifier": ("process.variance",)}
SAME_DATA = ("num_classes", "channels", "image_size")


@dataclasses.dataclass(frozen=True)
class Request:
    """What is drawn, as far as a program is compiled for it.

    Attributes:
        config: how to sample.
        edit: one of EDITS; None = fresh images.
        stride: of the states that are returned too; 0 = none.
    """

    config: SamplerConfig
    edit: str | None = None
    stride: int = 0


class Guides(NamedTuple):
    """What else guides, each None where it does not.

    Attributes:
        weak: the run of the weaker network of autoguidance.
        classifier: the run of a classifier.
        null: conditions that stand for none in place of the conditioners' own, without batch axis.
    """

    weak: Run | None = None
    classifier: Run | None = None
    null: Condition | None = None


ALONE = Guides()


def sample_images(
    run: Run,
    batch: Batch,
    keys: jax.Array,
    request: Request,
    *,
    arrays: Mapping[str, Any] | None = None,
    guides: Guides = ALONE,
    batch_size: int = 128,
    place: Any = None,
) -> Iterator[np.ndarray]:
    """Images of a run, a batch at a time.

    Args:
        run: whose network it is.
        batch: the fields (N, ...) that conditions are made of, such as {"label": labels}.
        keys: (N,) one an image, so that an image does not depend on the batch that it is drawn in.
        request: how.
        arrays: what an edit takes: leaves (N, ...), except `image`, `images` and `mask`, which all images share.
        guides: other runs that guide.
        batch_size: images at a time.
        place: where a batch lies, which batch_size fits; None = on one device.

    Yields:
        (n, H, W, C), with a stride (states, n, H, W, C); uint8 for 1 or 3 channels, else float32.

    Raises:
        UserError: nan or infinity in an image, or parts that do not fit together.
    """
    program = _program(run.task, request, _task(guides.weak), _task(guides.classifier))
    guiding = {name: getattr(guides, name).params for name in ("weak", "classifier") if getattr(guides, name)}
    total, size = len(keys), batch_size if place is not None else min(batch_size, len(keys))
    arrays = dict(arrays or {})
    shared = {name: arrays.pop(name) for name in ("image", "images", "mask") if name in arrays}
    for first in range(0, total, size):
        rows = np.arange(first, first + size) % total  # the last batch is filled up: one program for all
        mine = jax.tree.map(lambda leaf, rows=rows: leaf[rows], (batch, keys, arrays))
        mine = mine if place is None else jax.device_put(mine, place)
        images = np.asarray(program(run.params, run.frozen, *mine, shared, guiding, guides.null))
        if not np.all(np.isfinite(images)):
            what = "the images hold nan or infinity; try a lower guidance scale, another solver or another checkpoint"
            raise UserError(what)
        images = to_uint8(images) if images.shape[-1] in CHANNELS else images
        yield images[..., : total - first, :, :, :]


def _task(run: Run | None) -> Any:
    return None if run is None else run.task


@functools.cache
def _program(task: Diffusion, request: Request, weak: Diffusion | None, classifier: Classifier | None) -> Any:
    """The compiled (params, frozen, batch, keys, arrays, shared, guiding, null) -> images (B, H, W, C)."""
    config = request.config
    grid = config.make_grid(task.process)
    task.check_guidance(config)

    def run(
        params: Any, frozen: Frozen, batch: Batch, keys: jax.Array, arrays: Any, shared: Any, guiding: Any, null: Any
    ) -> jax.Array:
        log_p = None if classifier is None else classifier.log_p(guiding["classifier"])
        weaker = None if weak is None else weak.network_denoiser(guiding["weak"])
        denoise = task.denoiser(config, params, frozen, null, weaker, log_p)
        condition = task.conditioner(frozen, batch, keys)
        how: dict[str, Any] = dict(grid=grid, solver=config.make_solver(log_p))
        x0 = _draw(task, request, keys, denoise, condition, how, arrays | shared)
        return task.decode(frozen, x0)

    return jax.jit(run)


def _draw(task: Diffusion, request: Request, keys: Any, denoise: Any, condition: Any, how: Any, given: Any) -> Any:
    shape = task.shape
    if request.edit == "between_noises":
        return edits.between_noises(keys, given["other_keys"], given["weights"], denoise, condition, shape, **how)
    if request.edit == "between_images":
        return edits.between_images(keys, given["images"], given["weights"], denoise, condition, **how)
    if request.edit == "from_image":
        return edits.from_image(keys, given["image"], denoise, condition, shape, **how)
    if request.edit == "fill":
        return edits.fill(keys, given["image"], given["mask"], denoise, condition, shape, **how)
    return sample(keys, denoise, condition, shape, stride=request.stride, **how)


def check_guide(run: Run, other: Run, field: str) -> None:
    """Raise a UserError unless a run that guides is about the same noise, classes and images.

    Args:
        run: the guided one.
        other: the one that guides.
        field: how it is called: a key of DIFFERING.
    """
    if field == "classifier" and not isinstance(other.task, Classifier):
        what = "is not the run of a classifier; train one by configs/adm_classifier.py"
        raise UserError(field, str(other.directory), what)
    for name, ours in _compared(run).items():
        theirs = _compared(other).get(name)
        if name not in DIFFERING[field] and ours != theirs:
            raise UserError(
                *(field, str(other.directory)),
                f"must have the process, classes and image size of the guided run, but {name} is {theirs!r} there and "
                f"{ours!r} here",
            )


def _compared(run: Run) -> dict[str, Any]:
    process: Any = run.task.process  # type: ignore[attr-defined]
    fields = {f"process.{field.name}": getattr(process, field.name) for field in dataclasses.fields(process)}
    data = {f"data.{name}": run.config.data[name] for name in SAME_DATA}
    return {"process.name": run.config.process.name} | data | fields
