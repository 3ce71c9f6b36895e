"""What a sheet of images is conditioned on, a row a label: labels, prompts, conditions of a file, examples of data."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from archirf_jax.conditioners.inpainting import HOLE
from archirf_jax.contracts import Batch, Condition
from archirf_jax.data.dataset import Dataset
from archirf_jax.data.fields import finish, unflipped
from archirf_jax.data.images import to_float
from archirf_jax.data.pipeline import load
from archirf_jax.errors import UserError
from archirf_jax.launch import prompts as texts
from archirf_jax.launch.companions import Refiner, check_refiner, diffusion
from archirf_jax.launch.runs import Run
from archirf_jax.samplers.config import SamplerConfig
from archirf_jax.tasks.conditions import beside
from archirf_jax.tasks.conditions import read as read_conditions
from archirf_jax.tasks.diffusion import Diffusion
from archirf_jax.tasks.drawing import class_grid
from archirf_jax.training import devices
from archirf_jax.training.devices import GIB
from archirf_jax.training.state import purpose_key


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
    given: Batch | None = None,
) -> Rows:
    """Conditions of `per_class` images a label; a key depends on seed, label and number in the row alone.

    A network that is conditioned on labels takes them; another one takes `prompts`, whose numbers are the labels, the
    rows of `conditions`, or, without such a file, those of examples of each class from the run's data set. With
    prompts `conditions` holds what they do not say, a row for each of them or one for all. `given` (1, ...) are fields
    that are the same for all, such as an image and its hole (`needs_hole`).

    Raises:
        UserError: a label or row that does not exist, a file that the network does not need, or prompts that it does
            not take.
    """
    task, given = diffusion(run), given or {}
    _check_hole(run, given)
    if prompts is not None:
        if labels is not None:
            raise UserError("labels", str(labels), "does not go with prompts; leave one of them out")
        return _of_prompts(run, per_class, seed, prompts, negative_prompt, conditions, given)
    if negative_prompt is not None:
        raise UserError("negative_prompt", negative_prompt, "belongs to prompts")
    needed = task.needs - given.keys()
    plain = needed - task.usual <= {"label"}
    if conditions is not None and needed <= {"label"}:
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
        mine = {name: leaf[numbers] for name, leaf in table.items()}
        return Rows(chosen, mine | _for_all(given, len(keys)), keys, null)
    if not plain and run.data is None and run.config.data.name == "imported":
        raise UserError("conditions", message=f"is missing: an .npz file with {', '.join(sorted(task.needs))}")
    batch = {"label": numbers} if plain else of_data(run, chosen, per_class)
    return Rows(chosen, batch | _for_all(given, len(keys)), keys, None)


def needs_hole(run: Run) -> bool:
    """Whether the network fills a hole in an image, the fields "hole" and "image" (conditioners/inpainting.py)."""
    return HOLE in diffusion(run).needs


def _check_hole(run: Run, given: Batch) -> None:
    if needs_hole(run) and HOLE not in given:
        raise UserError("image", message="is missing: this run fills holes in images, and needs an image and a mask")
    if given and not needs_hole(run):
        raise UserError("image", message="is for a network that fills holes, and this one does not; leave it out")


def hole_of(image: np.ndarray, mask: np.ndarray) -> Batch:
    """Fields (1, ...) of an image, uint8 (H, W, C), and of a mask (H, W), which is not 0 in the hole."""
    return {"image": to_float(jnp.asarray(image))[None], HOLE: jnp.asarray(mask != 0, jnp.float32)[None, ..., None]}


def _for_all(given: Batch, count: int) -> dict[str, Any]:
    """The same fields for so many images; they take no memory before a batch is drawn."""
    return {name: np.broadcast_to(np.asarray(value), (count, *value.shape[1:])) for name, value in given.items()}


def refiner_of(
    run: Run,
    other: Run,
    config: SamplerConfig,
    handover: float,
    drawn: Rows,
    per_class: int,
    prompts: Sequence[texts.Prompt] | None = None,
    negative_prompt: str | None = None,
) -> Refiner:
    """The run that goes on with what another one drew of `drawn`, conditioned on the same labels or prompts.

    Raises:
        UserError: it does not go on with that, or reads other conditions.
    """
    check_refiner(run, other, handover)
    labels = drawn.labels if prompts is None else None
    try:
        asked = rows(other, labels, per_class, 0, None, config.asks_null, prompts, negative_prompt)
    except UserError as e:
        what = f"does not read the labels or prompts of this run: {e}"
        raise UserError("refiner", str(other.directory), what) from e
    return Refiner(other, config, handover, asked.batch, asked.null)


def _of_prompts(
    run: Run,
    per_class: int,
    seed: int,
    prompts: Sequence[texts.Prompt],
    negative_prompt: str | None,
    conditions: str | pathlib.Path | None,
    given: Batch,
) -> Rows:
    table, task = texts.batch_of(run, [prompt.text for prompt in prompts]), diffusion(run)
    table |= {name: jnp.asarray(value) for name, value in _for_all(given, len(prompts)).items()}
    table = beside(None if conditions is None else pathlib.Path(conditions), task, table)
    _check_memory(task, len(prompts), per_class)
    null = None if negative_prompt is None else texts.null_of(run, negative_prompt)
    places = [
        (i, seed) if prompt.seed is None else (0, prompt.seed)  # a seed of its own draws the same in any place
        for i, prompt in enumerate(prompts)
    ]
    keys = jnp.concatenate([class_grid(purpose_key(own, "sample"), [i], per_class)[1] for i, own in places])
    numbers = np.repeat(np.arange(len(prompts)), per_class)
    batch = {name: array[numbers] for name, array in table.items() if name not in given}
    batch |= _for_all(given, len(numbers))
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
