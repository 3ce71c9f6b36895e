"""The parts of a task from its configuration, each found by name in its room or in a module of the user's own."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from archirf_jax import conditioners, first_stages, models, objectives, processes, registry, tasks
from archirf_jax.conditioners.merged import Merged
from archirf_jax.contracts import Conditioner, FirstStage, Objective, Task
from archirf_jax.errors import UserError
from archirf_jax.files import expand
from archirf_jax.models.conditions import read_table
from archirf_jax.processes.base import Process

DTYPES = ("float32", "bfloat16", "float16")
LARGEST = 1_000_000  # number in the fields of a network or process
DROPOUT = zlib.crc32(b"dropout")  # far from the small numbers that other draws of a step are split by
Runs = Mapping[str, Any]


def make_task(config: Any, runs: Runs | None = None, model: nn.Module | None = None) -> Task:
    """The task of a resolved configuration (data.num_classes known).

    Args:
        config: of a run.
        runs: the frozen runs that it names.
        model: a network in place of the one that it names.

    Raises:
        UserError: a name, field or size that does not fit.
    """
    task: Task = registry.build(
        tasks,
        "task",
        config.task,
        kind=("init", "losses"),
        offered={"config": config, "runs": runs or {}, "model": model},
    )
    return task


def make_model(config: Any, given: nn.Module | None = None, **decided: Any) -> nn.Module:
    """The network of `config.model`, for the classes of `config.data`, unless another is given.

    Args:
        config: of a run.
        given: a network in its place.
        decided: fields that the task decides where the configuration does not.

    Raises:
        UserError: a name, field or size that does not fit.
    """
    if given is not None:
        return given
    fields = plain(config.model)
    if fields.get("dtype", "float32") not in DTYPES:
        raise UserError("model.dtype", fields["dtype"], f"is not one of {', '.join(DTYPES)}")
    _check_sizes("model", fields)
    known = {"num_classes": config.data.num_classes} | decided
    offered = {name: value for name, value in known.items() if name not in fields}
    model: nn.Module = registry.build(models, "model.name", config.model.name, fields, kind=nn.Module, offered=offered)
    return model


def _check_sizes(name: str, value: Any) -> None:
    """Raise a UserError for a number with which not even shapes and tables can be worked out."""
    if isinstance(value, dict):
        for key, each in value.items():
            _check_sizes(f"{name}.{key}", each)
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, int | float) and not abs(number) <= LARGEST:
            raise UserError(name, value, f"must be at most {LARGEST:_}")


def make_process(config: Any) -> Process:
    """The process of `config.process`; raises as `make_model`."""
    fields = plain(config.process)
    _check_sizes("process", fields)
    process: Process = registry.build(processes, "process.name", config.process.name, fields, kind=Process)
    return process


def make_objective(config: Any, process: Process, runs: Runs) -> Objective:
    """The objective of `config.objective`.

    Raises:
        UserError: as `make_model`, or losses that couple the examples of a batch that is computed in parts.
    """
    objective: Objective = registry.build(
        *(objectives, "objective.name", config.objective.name, plain(config.objective)),
        kind=("draw", "losses"),
        offered={"process": process, "runs": runs},
    )
    if objective.couples_examples and config.get("accumulation", 1) > 1:
        what = "must be 1: the losses of this objective depend on the whole batch"
        raise UserError("accumulation", config.accumulation, what)
    return objective


def make_conditioner(config: Any, process: Process, runs: Runs) -> Merged:
    """The merged conditioners of `config.conditioners`; raises as `make_model`."""
    offered = {"num_classes": config.data.num_classes, "process": process, "runs": runs, "data": config.data}
    offered["first_stage"] = make_first_stage(config, runs)

    def make(name: str, group: Any) -> Conditioner:
        field = f"conditioners.{name}.name"
        part: Conditioner = registry.build(
            conditioners, field, group.get("name"), plain(group), kind=("__call__", "null"), offered=offered
        )
        return part

    return Merged({name: make(name, group) for name, group in config.conditioners.items()})


def make_first_stage(config: Any, runs: Runs) -> FirstStage:
    """The first stage of `config.first_stage`; raises as `make_model`."""
    stage: FirstStage = registry.build(
        *(first_stages, "first_stage.name", config.first_stage.name, plain(config.first_stage)),
        kind=("encode", "decode"),
        offered={"runs": runs},
    )
    return stage


def resolve(config: Any, num_classes: int) -> None:
    """Fill in what the data decides: classes, and the shape of a table of class embeddings.

    Raises:
        UserError: fewer classes are asked for than the set has, or there is no such table, or it is of another shape.
    """
    asked = config.data.num_classes
    if asked is not None and asked < num_classes:
        raise UserError("data.num_classes", asked, f"is below the {num_classes} classes of {config.data.name!r}")
    config.data.num_classes = asked or num_classes
    model = config.model
    if model.get("context") != "class_table":
        return
    with config.unlocked():
        model.class_embeddings = str(expand(model.class_embeddings or "", "model.class_embeddings"))
        table = read_table(model.class_embeddings)
        for field, size in zip(("class_tokens", "class_width"), table.shape[1:], strict=True):
            model[field] = model.get(field) or size
    expected = (config.data.num_classes, model.class_tokens, model.class_width)
    if table.shape != expected:
        raise UserError(
            "model.class_embeddings",
            model.class_embeddings,
            f"holds a table of shape {table.shape}; data and model want (classes, class_tokens, class_width) = "
            f"{expected}",
        )


def dropout_key(key: jax.Array, part: Any = 0) -> jax.Array:
    """The key of dropout in one part of a step's batch."""
    return jax.random.fold_in(jax.random.fold_in(key, DROPOUT), part)


def example_keys(key: jax.Array, purpose: str, count: int) -> jax.Array:
    """(count,) one key an example, for what `purpose` names."""
    own = jax.random.fold_in(key, zlib.crc32(purpose.encode()))
    return jax.vmap(lambda i: jax.random.fold_in(own, i))(jnp.arange(count))


def in_parts(fn: Callable[..., Any], parts: int, *trees: Any) -> Any:
    """fn of trees with leading axis B, computed in so many parts one after the other, to save memory."""
    if parts == 1:
        return fn(*trees)
    divided = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), trees)
    found = jax.lax.map(lambda part: fn(*part), divided)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), found)


def plain(group: Any) -> dict[str, Any]:
    """The fields of a group of the configuration but its name; saved configurations hold lists where tuples were."""
    return {key: _plain(value) for key, value in group.items() if key != "name"}


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(_plain(each) for each in value)
    return {key: _plain(each) for key, each in value.items()} if hasattr(value, "items") else value
