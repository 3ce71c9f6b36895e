"""Samples of a run: one function, which commands, notebooks and previews of edits share."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from archirf_jax import sharding
from archirf_jax.contracts import Batch, Frozen
from archirf_jax.data.images import to_uint8
from archirf_jax.errors import UserError
from archirf_jax.launch import prompts as texts
from archirf_jax.launch.companions import (
    ALONE,
    HANDOVER,
    Guides,
    Refiner,
    diffusion,
    shared,
)
from archirf_jax.launch.runs import Run
from archirf_jax.launch.sheet_rows import hole_of, refiner_of, rows
from archirf_jax.samplers import edits
from archirf_jax.samplers.config import SamplerConfig
from archirf_jax.samplers.grids import ending_at
from archirf_jax.samplers.sample import sample
from archirf_jax.tasks.classifier import Classifier
from archirf_jax.tasks.diffusion import Diffusion

CHANNELS = (1, 3)  # of images that can be shown; other data stays float32
EDITS = ("between_noises", "between_images", "from_image", "fill")
REFINER = zlib.crc32(b"refiner")  # folded into the keys of what a refiner draws


@dataclasses.dataclass(frozen=True)
class Request:
    """The part of a request for samples that a program is compiled for.

    Attributes:
        config: how to sample.
        edit: one of EDITS; None = fresh images.
        stride: of the states that are returned too; 0 = none.
        latents: return what is diffused, float32, and not the images that it is decoded to.
        handover: leave out the steps that start at this time or below; 0 = none.
    """

    config: SamplerConfig
    edit: str | None = None
    stride: int = 0
    latents: bool = False
    handover: float = 0.0


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
        arrays: what an edit takes: leaves (N, ...), except `image`, `images` and `mask`, which all images share; fresh
            images take `start`, x at the first time of the grid.
        guides: other runs that guide.
        batch_size: images at a time.
        place: where a batch lies, which batch_size fits; None = on one device.

    Yields:
        (n, H, W, C), with a stride (states, n, H, W, C); uint8 for 1 or 3 channels, else float32.

    Raises:
        UserError: nan or infinity in an image, or parts that do not fit together.
    """
    if isinstance(run.task, Diffusion):
        program = _program(run.task, request, _task(guides.weak), _task(guides.classifier))
    else:
        task: Any = run.task
        program = _plain_program(task, request)
    guiding = {name: getattr(guides, name).params for name in ("weak", "classifier") if getattr(guides, name)}
    networks = run.params, run.frozen, guiding
    params, frozen, guiding = networks if place is None else jax.device_put(networks, sharding.whole(place.mesh))
    total, size = len(keys), batch_size if place is not None else min(batch_size, len(keys))
    arrays = dict(arrays or {})
    shared = {name: arrays.pop(name) for name in ("image", "images", "mask") if name in arrays}
    for first in range(0, total, size):
        mine: Any = batch, keys, arrays
        if size != total:  # or a dozen small programs copy what is there
            rows = np.arange(first, first + size) % total  # the last batch is filled up: one program for all
            mine = jax.tree.map(lambda leaf, rows=rows: leaf[rows], mine)
        mine = mine if place is None else jax.device_put(mine, place)
        images = np.asarray(program(params, frozen, *mine, shared, guiding, guides.null))
        if not np.all(np.isfinite(images)):
            what = "the images hold nan or infinity; try a lower guidance scale, another solver or another checkpoint"
            raise UserError(what)
        images = to_uint8(images) if images.shape[-1] in CHANNELS and not request.latents else images
        yield images[..., : total - first, :, :, :]


def refined_images(
    run: Run, batch: Batch, keys: jax.Array, request: Request, refiner: Refiner | None, **options: Any
) -> Iterator[np.ndarray]:
    """As `sample_images`, but a refiner, where there is one, draws the last part; options as there."""
    theirs = None if refiner is None else refiner.after(diffusion(run).process, request.config)
    if refiner is None or theirs is None:
        return sample_images(run, batch, keys, request, **options)
    base = dataclasses.replace(request, latents=True, handover=refiner.handover)
    states = np.concatenate(list(sample_images(run, batch, keys, base, **options)))
    own = jax.vmap(lambda key: jax.random.fold_in(key, REFINER))(keys)  # else it would draw the base's noise again
    options |= dict(arrays={"start": states}, guides=Guides(null=refiner.null))
    return sample_images(refiner.run, refiner.batch, own, Request(theirs, latents=request.latents), **options)


def sample_run(
    run: Run,
    labels: Iterable[int] | None = None,
    per_class: int = 8,
    seed: int = 0,
    *,
    prompts: Sequence[str] | None = None,
    negative_prompt: str | None = None,
    conditions: str | pathlib.Path | None = None,
    batch_size: int = 128,
    latents: bool = False,
    refiner: Run | None = None,
    handover: float = HANDOVER,
    refine: Mapping[str, Any] | None = None,
    size: tuple[int, int] | None = None,
    image: np.ndarray | None = None,
    mask: np.ndarray | None = None,
    **how: Any,
) -> np.ndarray:
    """Fresh images of a run.

    Args:
        run: whose network it is.
        labels: classes in the order of the images, or rows of `conditions`; None = all, at most ten.
        per_class: images each.
        seed: of the noise.
        prompts: texts, each in the place of a class.
        negative_prompt: what guidance leads away from, in place of no text.
        conditions: .npz file of what the network takes besides labels.
        batch_size: images at a time.
        latents: give what is diffused, and not the images that it is decoded to.
        refiner: another run, which draws what is left at the time `handover`, of the same labels or prompts.
        handover: in (0, 1); see `companions.Refiner`.
        refine: changes of how the refiner is sampled; solver, grid, steps, threshold, hoist of `how` hold for it, too.
        size: height and width of the images in pixels, where the network knows others; None = as it was trained.
        image, mask: uint8 (H, W, C), and (H, W), not 0 where pixels are to be made, for a network that fills holes.
        how: changes of how the run is sampled, such as solver="heun", steps=10, guidance_scale=2.0; see
            `SamplerConfig.replace`.

    Returns:
        (N, H, W, C) uint8; float32 for latents and data that is not an image.
    """
    task = diffusion(run)
    if size is not None:
        run, refiner = run.at_size(*size), refiner and refiner.at_size(*size)
    request = Request(task.sampling.replace(**how), latents=latents)
    if prompts is not None and (isinstance(prompts, str) or not len(prompts)):
        raise UserError("prompts", message="must be a list of texts, at least one")
    asked = None if prompts is None else [texts.Prompt(text) for text in prompts]
    given = None if image is None or mask is None else hole_of(image, mask)
    drawn = rows(run, labels, per_class, seed, conditions, request.config.asks_null, asked, negative_prompt, given)
    after = None
    if refiner is not None:
        theirs = diffusion(refiner).sampling.replace(**shared(how), **(refine or {}))
        after = refiner_of(run, refiner, theirs, handover, drawn, per_class, asked, negative_prompt)
    options: dict[str, Any] = dict(guides=Guides(null=drawn.null), batch_size=batch_size)
    return np.concatenate(list(refined_images(run, drawn.batch, drawn.keys, request, after, **options)))


def _task(run: Run | None) -> Any:
    return None if run is None else run.task


@functools.cache
def _plain_program(task: Any, request: Request) -> Any:
    """The compiled program of a task with a sampler of its own, which takes no edits and no guides."""
    sampler = task.sampler(request.config)
    return jax.jit(lambda params, frozen, batch, keys, *rest: sampler(params, frozen, batch, keys))


@functools.cache
def _program(task: Diffusion, request: Request, weak: Diffusion | None, classifier: Classifier | None) -> Any:
    """The compiled (params, frozen, batch, keys, arrays, shared, guiding, null) -> images (B, H, W, C)."""
    config = request.config
    grid = config.make_grid(task.process)
    grid = ending_at(grid, request.handover) if request.handover else grid
    task.check_guidance(config)

    def run(
        params: Any, frozen: Frozen, batch: Batch, keys: jax.Array, arrays: Any, shared: Any, guiding: Any, null: Any
    ) -> jax.Array:
        log_p = None if classifier is None else classifier.log_p(guiding["classifier"])
        weaker = None if weak is None else weak.network_denoiser(guiding["weak"])
        denoise = task.denoiser(config, params, frozen, null, weaker, log_p)
        condition = task.conditioner(frozen, batch, keys)
        how: dict[str, Any] = dict(grid=grid, solver=config.make_solver(log_p), hoist=config.hoist)
        x0 = _draw(task, request, keys, denoise, condition, how, arrays | shared)
        return x0 if request.latents else task.decode(frozen, x0)

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
    return sample(keys, denoise, condition, shape, start=given.get("start"), stride=request.stride, **how)
