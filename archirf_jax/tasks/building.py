"""What every task makes of its configuration."""

from __future__ import annotations

import os
import zlib
from typing import Any

import jax
import jax.numpy as jnp

from archirf_jax import models, processes, registry
from archirf_jax.errors import UserError
from archirf_jax.models.conditions import read_table
from archirf_jax.models.layers import TOLD
from archirf_jax.processes.base import Process

DTYPES = ("float32", "bfloat16", "float16")
DROPOUT = zlib.crc32(b"dropout")  # far from the small numbers that other draws of a step are split by


def make_model(config: Any) -> Any:
    """The network of `config.model`, for the classes of `config.data`.

    Raises:
        UserError: a name, field or size that does not fit.
    """
    fields = _rest(config.model)
    if fields.get("dtype", "float32") not in DTYPES:
        raise UserError(f"config.model.dtype: {fields['dtype']!r} is not one of {', '.join(DTYPES)}")
    fields["num_classes"] = config.data.num_classes
    return registry.build(models, "config.model.name", config.model.name, fields)


def make_process(config: Any) -> Process:
    """The process of `config.process`.

    Raises:
        UserError: a name, field or size that does not fit.
    """
    process: Process = registry.build(processes, "config.process.name", config.process.name, _rest(config.process))
    return process


def resolve_class_embeddings(config: Any) -> None:
    """Fill in tokens and width of a network's table of class embeddings where they are 0, and expand ~ in its path.

    Raises:
        UserError: there is no such table, or it is for other classes or of another shape.
    """
    model = config.model
    if model.get("context") != "class_table":
        return
    with config.unlocked():
        model.class_embeddings = os.path.expanduser(model.class_embeddings)
        table = read_table(model.class_embeddings)
        model.class_tokens, model.class_width = (
            model.get(field) or size
            for field, size in zip(("class_tokens", "class_width"), table.shape[1:], strict=True)
        )
    expected = (config.data.num_classes, model.class_tokens, model.class_width)
    if table.shape != expected:
        raise UserError(
            f"config.model.class_embeddings: the table in {model.class_embeddings!r} has the shape {table.shape}; the "
            f"data and config.model want (classes, class_tokens, class_width) = {expected}"
        )


def dropout_key(key: jax.Array, part: Any = 0) -> jax.Array:
    """The key of dropout in one part of a step's batch."""
    return jax.random.fold_in(jax.random.fold_in(key, DROPOUT), part)


def dropout_rngs(key: jax.Array | None, part: Any) -> dict[str, jax.Array] | None:
    """What a network is given to drop units by in one part of a step's batch; without a key it drops none."""
    return None if key is None else {"dropout": dropout_key(key, part)}


def apply_telling(model: Any, params: Any, *inputs: Any, rngs: Any = None) -> tuple[Any, dict[str, jax.Array]]:
    """(the network's answer, what it tells beside it: () each, the largest of all layers)."""
    output, variables = model.apply({"params": params}, *inputs, rngs=rngs, mutable=[TOLD])
    told: dict[str, jax.Array] = {}
    for path, value in jax.tree_util.tree_leaves_with_path(variables.get(TOLD, {})):
        name = path[-1].key
        told[name] = jnp.maximum(told.get(name, -jnp.inf), jnp.max(value))
    return output, told


def _rest(config: Any) -> dict[str, Any]:
    # Saved configurations hold lists where there were tuples.
    fields = {key: value for key, value in config.items() if key != "name"}
    return {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
