"""What the previews of a training show: a row a class, or, where the network reads texts, a row a caption."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from archirf_jax.contracts import Batch
from archirf_jax.data.dataset import Dataset
from archirf_jax.data.fields import finish, unflipped
from archirf_jax.data.fields.caption import COUNT, Caption
from archirf_jax.data.fields.text_states import TextStates
from archirf_jax.launch import outputs

SEARCHED = 1000  # examples among which different captions are looked for


def prepare(task: Any, dataset: Dataset, config: Any) -> None:
    """Give a task what its previews are of, the same at every step and after every restart.

    A network that is conditioned on labels alone shows classes, by their names. One that reads texts shows the first
    captions of the set, `sample.per_class` images of each, and any other one the first examples, without names.

    Args:
        task: its `row_names`, `captions` and, where it looks at them, `examples` are set, as far as it has them.
        dataset: of the training.
        config: whose `sample` says how many rows and columns there are.
    """
    rows, columns = config.sample.classes, config.sample.per_class
    labels_alone = getattr(task, "labels_alone", True)
    names = outputs.named_rows(dataset.class_names, range(len(dataset.class_names))) if labels_alone else []
    numbers, each = list(itertools.islice(itertools.cycle(range(len(dataset))), rows * columns)), 1
    if not labels_alone and task.needs & _text_fields(dataset):
        found = captions(dataset, rows)
        names, numbers, each = list(found), list(found.values()), columns
        task.captions = names
    if hasattr(task, "row_names"):
        task.row_names = names
    if hasattr(task, "examples") and not getattr(task, "labels_alone", False):
        task.examples = jax.tree.map(lambda leaf: jnp.repeat(leaf, each, axis=0), examples(dataset, numbers))


def captions(dataset: Dataset, most: int) -> dict[str, int]:
    """The first different captions of a set, at most `most`, and an example of each; "" where one has none."""
    found: dict[str, int] = {}
    for number in range(min(len(dataset), SEARCHED)):
        texts = [text.strip() for text in dataset.captions([number])[0] if text.strip()]
        found.setdefault(texts[0] if texts else "", number)
        if len(found) == most:
            break
    return found


def examples(dataset: Dataset, numbers: Sequence[int]) -> Batch:
    """A batch of these examples, not mirrored, with the first caption of each."""
    if dataset.arrays is not None:
        arrays = {name: array[np.asarray(numbers)] for name, array in dataset.arrays.items()}
    else:
        decoded = [dataset.example(number) for number in numbers]
        arrays = {name: np.stack([one[name] for one in decoded]) for name in decoded[0]}
    counts = {name for name in _text_fields(dataset) if name.endswith(COUNT)}
    first = {name: jnp.asarray(np.ones_like(a) if name in counts else a) for name, a in arrays.items()}
    return finish(unflipped(dataset.fields), first, jax.random.key(0))


def _text_fields(dataset: Dataset) -> set[str]:
    """The names of the decoded arrays that belong to captions."""
    texts = (field for field in dataset.fields.values() if isinstance(field, Caption | TextStates))
    return {name for field in texts for name in field.shapes()}
