"""Published weights as a run of a task, and a run's weights as published."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from absl import logging

from archirf_jax.errors import UserError
from archirf_jax.interop import sources
from archirf_jax.interop.files import Tensor
from archirf_jax.interop.weights import check, published_shapes, to_params, to_state
from archirf_jax.tasks.building import make_task


def load(source: str, tensors: dict[str, Any], hints: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """(configuration of a run, parameters by module) of published tensors.

    Raises:
        UserError: they are not of this source, or do not fit the network that they seem to be.
    """
    source = sources.spelling(source, tensors)
    prefix, names = sources.split_prefix(tensors, source)
    if left := len(tensors) - len(names):
        logging.info("%d tensors of other networks in the file are left out", left)
    aliases = _take_aliases(sources.SOURCES[source].aliases, names, tensors)
    state = {inner: tensors[name] for name, inner in names.items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    config = sources.configuration(source, shapes, hints)
    network = _network(source, ml_collections.ConfigDict(config))

    like, kind, size = network.like, sources.SOURCES[source], config["data"]["image_size"]
    rename = sources.rename(source, network.module, size)
    constants = {name: value for name, value in kind.constants(network.model, size).items() if name in state}
    check(shapes, published_shapes(like, rename) | {name: value.shape for name, value in constants.items()})
    for name, value in constants.items():
        if not np.allclose(np.asarray(state[name]), value, atol=1e-2):  # some weights are saved in half precision
            raise UserError("checkpoint", name, "is not the fixed table that this network has in its place")
    own = {name: tensor for name, tensor in state.items() if name not in constants}
    params = to_params(own, like, rename, _in_half if kind.half else np.asarray)
    # What the file calls otherwise than by the prefix and the network's own names.
    renamed = [[inner, name] for name, inner in names.items() if name != f"{prefix}{inner}"]
    config["imported"] = dict(source=source, prefix=prefix, constants=sorted(constants), renamed=renamed)
    if aliases:
        config["imported"]["aliases"] = aliases
    if kind.latents and len(kind.latents["mean"]) == config["data"]["channels"]:
        config["imported"]["latents"] = dict(kind.latents)
    return config, {network.main: params}


def export(config: Any, task: Any, params: dict[str, Any]) -> dict[str, np.ndarray]:
    """The published tensors by name of a run's weights, by module.

    Raises:
        UserError: the published implementation does not have this network.
    """
    if config.model.name not in sources.MODELS:
        raise UserError("model.name", config.model.name, f"is not published; what is: {', '.join(sources.MODELS)}")
    imported = config.get("imported", {})
    source = imported.get("source", sources.MODELS[config.model.name])
    rename = sources.rename(source, task.module, config.data.image_size)
    state = to_state(jax.tree.map(np.asarray, params[task.main]), rename)
    constants = sources.SOURCES[source].constants(task.model, config.data.image_size)
    kept = imported.get("constants", list(constants))
    state |= {name: value for name, value in constants.items() if name in kept}
    prefix, renamed = imported.get("prefix", ""), dict(imported.get("renamed", ()))
    found = {renamed.get(name, f"{prefix}{name}"): value for name, value in state.items()}
    return found | {alias: state[name] for alias, name in imported.get("aliases", ())}


def _in_half(tensor: Any) -> np.ndarray:
    """Values of a tensor of a file in its own half precision, or of an array as it is."""
    return tensor.in_half() if isinstance(tensor, Tensor) else np.asarray(tensor)


def _take_aliases(known: Mapping[str, str], names: dict[str, str], tensors: dict[str, Any]) -> list[list[str]]:
    """Leave one name of each tensor that a file holds under two: {name in the file: name in the network} is changed.

    Returns:
        (name in the file, name in the network) of those that were left out.

    Raises:
        UserError: the two are not equal.
    """
    inside, left = {inner: name for name, inner in names.items()}, []
    for alias, inner in known.items():
        if alias not in inside:
            continue
        if inner not in inside:
            names[inside[alias]] = inner
            continue
        if not np.array_equal(np.asarray(tensors[inside[alias]]), np.asarray(tensors[inside[inner]])):
            raise UserError(
                "checkpoint", inside[alias], f"is not equal to {inside[inner]}, of which it is another name"
            )
        del names[inside[alias]]
        left.append([inside[alias], inner])
    return left


class _Network(NamedTuple):
    """What tensors are compared with: names as of a task, and the shapes of the parameters."""

    main: str
    model: Any
    module: Any
    like: Any


def _network(source: str, config: Any) -> _Network:
    task: Any = make_task(config)
    kind, key = sources.SOURCES[source], jax.random.key(0)
    if inputs := kind.inputs(config.data):
        return _Network(task.main, task.model, task.module, jax.eval_shape(task.model.init, key, *inputs)["params"])
    return _Network(task.main, task.model, task.module, jax.eval_shape(task.init_params, key, {})[task.main])
