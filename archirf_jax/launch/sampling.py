"""Samples of a run: one function, which commands, notebooks and previews of edits share."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from archirf_jax import sharding
from archirf_jax.contracts import Batch, Condition, Frozen
from archirf_jax.data.dataset import Dataset
from archirf_jax.data.fields import finish, unflipped
from archirf_jax.data.images import to_uint8
from archirf_jax.data.pipeline import load
from archirf_jax.errors import UserError
from archirf_jax.launch import prompts as texts
from archirf_jax.launch.runs import Run
from archirf_jax.samplers import edits
from archirf_jax.samplers.config import SamplerConfig
from archirf_jax.samplers.sample import sample
from archirf_jax.tasks.classifier import Classifier
from archirf_jax.tasks.conditions import beside
from archirf_jax.tasks.conditions import read as read_conditions
from archirf_jax.tasks.diffusion import Diffusion
from archirf_jax.tasks.drawing import class_grid
from archirf_jax.training import devices
from archirf_jax.training.devices import GIB
from archirf_jax.training.state import purpose_key

CHANNELS = (1, 3)  # of images that can be shown; other data stays float32
EDITS = ("between_noises", "between_images", "from_image", "fill")
# Fields of process and data in which a run that guides may differ from the guided one.
DIFFERING = {"weak_workdir": (), "classifier": ("process.variance",)}
SAME_DATA = ("num_classes", "channels", "image_size")


@dataclasses.dataclass(frozen=True)
class Request:
    """The part of a request for samples that a program is compiled for.

    Attributes:
        config: how to sample.
        edit: one of EDITS; None = fresh images.
        stride: of the states that are returned too; 0 = none.
        latents: return what is diffused, float32, and not the images that it is decoded to.
        sides: height and width of fresh images; None = the run's squares.
    """

    config: SamplerConfig
    edit: str | None = None
    stride: int = 0
    latents: bool = False
    sides: tuple[int, int] | None = None


class Guides(NamedTuple):
    """What guides besides the network itself; None where it does not.

    Attributes:
        weak: the run of the weaker network of autoguidance.
        classifier: the run of a classifier.
        null: conditions that stand for none in place of the conditioners' own, without batch axis.
    """

    weak: Run | None = None
    classifier: Run | None = None
    null: Condition | None = None

    def directories(self) -> dict[str, str]:
        """Those of the runs that guide, by name."""
        runs = {"weak": self.weak, "classifier": self.classifier}
        return {name: str(run.directory) for name, run in runs.items() if run is not None}


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
        rows = np.arange(first, first + size) % total  # the last batch is filled up: one program for all
        mine = jax.tree.map(lambda leaf, rows=rows: leaf[rows], (batch, keys, arrays))
        mine = mine if place is None else jax.device_put(mine, place)
        images = np.asarray(program(params, frozen, *mine, shared, guiding, guides.null))
        if not np.all(np.isfinite(images)):
            what = "the images hold nan or infinity; try a lower guidance scale, another solver or another checkpoint"
            raise UserError(what)
        images = to_uint8(images) if images.shape[-1] in CHANNELS and not request.latents else images
        yield images[..., : total - first, :, :, :]


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
        how: changes of how the run is sampled, such as solver="heun", steps=10, guidance_scale=2.0; see
            `SamplerConfig.replace`.

    Returns:
        (N, H, W, C) uint8; float32 for latents and data that is not an image.
    """
    task = diffusion(run)
    request = Request(task.sampling.replace(**how), latents=latents)
    if prompts is not None and (isinstance(prompts, str) or not len(prompts)):
        raise UserError("prompts", message="must be a list of texts, at least one")
    asked = None if prompts is None else [texts.Prompt(text) for text in prompts]
    drawn = rows(run, labels, per_class, seed, conditions, request.config.asks_null, asked, negative_prompt)
    parts = sample_images(run, drawn.batch, drawn.keys, request, guides=Guides(null=drawn.null), batch_size=batch_size)
    return np.concatenate(list(parts))


class Rows(NamedTuple):
    """Conditions for a sheet of images, one row a label.

    Attributes:
        labels: one a row.
        batch: fields (N, ...) that conditions are made of, row after row.
        keys: (N,) one an image.
        null: from a file of conditions or a negative prompt, else None.
        scales: of guidance, one a row, of which None is the usual one; () = all have that.
    """

    labels: list[int]
    batch: Batch
    keys: jax.Array
    null: Condition | None
    scales: Sequence[float | None] = ()


def rows(
    run: Run,
    labels: Iterable[int] | None,
    per_class: int,
    seed: int,
    conditions: str | pathlib.Path | None = None,
    needs_null: bool = False,
    prompts: Sequence[texts.Prompt] | None = None,
    negative_prompt: str | None = None,
) -> Rows:
    """Conditions of `per_class` images a label; a key depends on seed, label and number in the row alone.

    A network that is conditioned on labels takes them; another one takes `prompts`, whose numbers are the labels, the
    rows of `conditions`, or, without such a file, those of examples of each class from the run's data set. With
    prompts `conditions` holds what they do not say, a row for each of them or one for all.

    Raises:
        UserError: a label or row that does not exist, a file that the network does not need, or prompts that it does
            not take.
    """
    task = diffusion(run)
    if prompts is not None:
        if labels is not None:
            raise UserError("labels", str(labels), "does not go with prompts; leave one of them out")
        return _of_prompts(run, per_class, seed, prompts, negative_prompt, conditions)
    if negative_prompt is not None:
        raise UserError("negative_prompt", negative_prompt, "belongs to prompts")
    plain = task.labels_alone
    if conditions is not None and task.needs <= {"label"}:
        raise UserError("conditions", str(conditions), "is not needed: this network takes labels alone; leave it out")
    table: Batch | None = None
    null = None
    if conditions is not None:
        table, null = read_conditions(pathlib.Path(conditions), task, needs_null)
    count = task.num_classes if table is None else len(next(iter(table.values())))
    chosen = list(range(min(count, 10))) if labels is None else [int(label) for label in labels]
    for label in chosen:
        if not 0 <= label < count:
            raise UserError("labels", label, f"is out of range; this run has the labels 0-{count - 1}")
    _check_memory(task, len(chosen), per_class)
    numbers, keys = class_grid(purpose_key(seed, "sample"), chosen, per_class)
    if table is not None:
        return Rows(chosen, jax.tree.map(lambda leaf: leaf[numbers], table), keys, null)
    if not plain and run.data is None and run.config.data.name == "imported":
        raise UserError("conditions", message=f"is missing: an .npz file with {', '.join(sorted(task.needs))}")
    batch = {"label": numbers} if plain else of_data(run, chosen, per_class)
    return Rows(chosen, batch, keys, None)


def _of_prompts(
    run: Run,
    per_class: int,
    seed: int,
    prompts: Sequence[texts.Prompt],
    negative_prompt: str | None,
    conditions: str | pathlib.Path | None,
) -> Rows:
    table, task = texts.batch_of(run, [prompt.text for prompt in prompts]), diffusion(run)
    table = beside(None if conditions is None else pathlib.Path(conditions), task, table)
    _check_memory(task, len(prompts), per_class)
    null = None if negative_prompt is None else texts.null_of(run, negative_prompt)
    places = [
        (i, seed) if prompt.seed is None else (0, prompt.seed)  # a seed of its own draws the same in any place
        for i, prompt in enumerate(prompts)
    ]
    keys = jnp.concatenate([class_grid(purpose_key(own, "sample"), [i], per_class)[1] for i, own in places])
    numbers = np.repeat(np.arange(len(prompts)), per_class)
    batch = {name: array[numbers] for name, array in table.items()}
    return Rows(list(range(len(prompts))), batch, keys, null, [prompt.guidance_scale for prompt in prompts])


def _check_memory(task: Diffusion, rows: int, per_class: int) -> None:
    """Raise a UserError if the images alone, which are kept until all are drawn, do not fit."""
    data = task.config.data
    needed, there = rows * per_class * data.image_size**2 * data.channels, devices.machine_memory()
    if needed > there:
        what = f"of {rows} classes take {needed / GIB:,.0f} GiB, and the machine has {there / GIB:,.0f}; draw fewer"
        raise UserError("per_class", per_class, what)


def of_data(run: Run, labels: list[int], per_class: int) -> Batch:
    """Fields of the first `per_class` examples of each label in the run's data set, over again where it has fewer.

    Raises:
        UserError: there is no such set, or it has no example of a label.
    """
    dataset = run.data or load(run.config.data)
    check_classes(run, dataset)
    if "label" not in dataset.fields:
        order = [np.arange(len(labels) * per_class) % len(dataset)]
    else:
        known = dataset_labels(dataset)
        order = [np.flatnonzero(known == label) for label in labels]
        for label, found in zip(labels, order, strict=True):
            if not len(found):
                raise UserError("labels", label, "has no example in the data set, from which conditions are taken")
        order = [np.resize(found, per_class) for found in order]
    decoded = [dataset.example(int(number)) for number in np.concatenate(order)]
    arrays = {name: jnp.asarray(np.stack([one[name] for one in decoded])) for name in decoded[0]}
    return diffusion(run).without_usual(finish(unflipped(dataset.fields), arrays, jax.random.key(0)))


def check_classes(run: Run, dataset: Dataset) -> None:
    """Raise a UserError if a set numbers its classes in another way than the run's own did, such as after renaming."""
    names, found = run.config.get("identity", {}).get("class_names", []), dataset.class_names
    differing = [label for label in range(min(len(names), len(found))) if names[label] != found[label]]
    if differing:
        first = differing[0]
        what = f"calls label {first} {found[first]!r}, and the run {names[first]!r} ({len(differing)} names differ)"
        raise UserError(
            "data.name", dataset.settings["name"], f"{what}; give each class the name and number that it had"
        )


def dataset_labels(dataset: Dataset) -> np.ndarray:
    """(N,) the label of every readable example; no image is decoded."""
    if dataset.arrays is not None:
        return dataset.arrays["label"]
    return np.asarray([dataset.source[int(number)]["label"] for number in dataset.readable])


def diffusion(run: Run) -> Diffusion:
    """The task of a run that draws images.

    Raises:
        UserError: it is another one.
    """
    if not isinstance(run.task, Diffusion):
        what = f"is the run of the task {run.config.task}, which does not draw images"
        raise UserError(run.field, str(run.directory), what)
    return run.task


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
        return x0 if request.latents else task.decode(frozen, x0)

    return jax.jit(run)


def _draw(task: Diffusion, request: Request, keys: Any, denoise: Any, condition: Any, how: Any, given: Any) -> Any:
    shape = task.shape_of(request.sides)
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
