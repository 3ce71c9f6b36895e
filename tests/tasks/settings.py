"""Small configurations, batches and frozen runs for the laws of tasks."""

from __future__ import annotations

import types
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from archirf_jax.contracts import Batch
from configs import dit_rf, mmdit_rf

SMALL = {
    **{"model.hidden_size": 16, "model.depth": 1, "data.num_classes": 3, "schedule.warmup_steps": 0},
    **{"sample.steps": 3, "sample.per_class": 2},
}
BATCH: Batch = {
    "image": jax.random.normal(jax.random.key(0), (8, 8, 8, 1)),
    "label": jnp.arange(8, dtype=jnp.int32) % 3,
}
TEXT = {  # a network of texts, which a frozen run encodes
    **{
        "model.context": "text",
        "model.context_width": 16,
        "model.pooled_width": None,
        "frozen.encoder": "runs/encoder",
    },
    "conditioners": {"text": {"name": "tests.extensions.text"}, "low": {"name": "tests.extensions.low_res"}},
    "data.fields": {
        "ids": {"name": "array", "feature": "ids", "shape": (4,), "dtype": "int32"},
        "mask": {"name": "array", "feature": "mask", "shape": (4,), "dtype": "bool"},
    },
}
WORDS: Batch = BATCH | {
    "ids": jnp.arange(32, dtype=jnp.int32).reshape(8, 4) % 13,
    "mask": jnp.arange(4) < jnp.arange(8)[:, None] % 4 + 1,
}


def config(file: Any = dit_rf, changes: dict[str, Any] | None = None, small: dict[str, Any] | None = None) -> Any:
    """A configuration of a file with other fields, by dotted name; whole groups are replaced."""
    made = file.get_config()
    with made.unlocked():
        for name, value in ((SMALL if small is None else small) | (changes or {})).items():
            *groups, field = name.split(".")
            inside = made
            for group in groups:
                inside = inside[group]
            if field in inside:
                del inside[field]  # a value of another type may take its place
            inside[field] = ml_collections.ConfigDict(value) if isinstance(value, dict) else value
    return made


def moved(params: Any, seed: int = 0, scale: float = 0.05) -> Any:
    """The parameters and normal noise, as those of a network that is not fresh; of shapes the noise alone."""
    random = np.random.default_rng(seed)

    def one(leaf: Any) -> Any:
        noise = np.float32(scale) * random.normal(size=leaf.shape).astype(np.float32)
        return noise if isinstance(leaf, jax.ShapeDtypeStruct) else leaf + noise

    return jax.tree.map(one, params)


def noisy(task: Any, frozen: Any = None, scale: float = 0.2) -> Any:
    """Parameters by module of a network that does not answer zero, as a fresh one does; nothing is compiled."""
    return moved(jax.eval_shape(task.init_params, jax.random.key(0), frozen or {}), scale=scale)


def run_of(task: Any, params: Any) -> Any:
    """What a task knows of a frozen run."""
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
    return types.SimpleNamespace(task=task, params=params, shapes=shapes)


def text_config(**changes: Any) -> Any:
    """A transformer of images with captions."""
    return config(mmdit_rf, TEXT | {"sample.guidance.scale": 1.0} | changes)
