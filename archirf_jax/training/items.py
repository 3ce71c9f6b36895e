"""What a checkpoint is made of: one Orbax item for every field of every network, named NETWORK.FIELD.

Averages are an item each, NETWORK.averages.NAME, so that one can be read alone. Trees without arrays are not saved.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Iterable
from typing import Any

import jax
import orbax.checkpoint as ocp

from archirf_jax.contracts import Network, TrainState
from archirf_jax.training import checksums

AVERAGES = "averages"
NAMED = 4  # parameters that differ are named up to this number
Items = dict[str, Any]


def average(network: str, name: str) -> str:
    """The item of a network's average."""
    return f"{network}.{AVERAGES}.{name}"


def of_state(state: TrainState) -> Items:
    """Name -> tree of everything in a state but its step."""
    trees: Items = {}
    for name, network in state.networks.items():
        for field in dataclasses.fields(network):
            value = getattr(network, field.name)
            parts = {f".{key}": tree for key, tree in value.items()} if field.name == AVERAGES else {"": value}
            trees |= {f"{name}.{field.name}{key}": tree for key, tree in parts.items()}
    return {name: tree for name, tree in trees.items() if jax.tree.leaves(tree)}  # Orbax refuses an empty tree


def to_state(like: TrainState, step: int, items: Items) -> TrainState:
    """The state whose trees are `items`; what was not saved is as in `like`."""
    networks = {name: _network(name, network, items) for name, network in like.networks.items()}
    return dataclasses.replace(like, step=jax.numpy.asarray(step, "int32"), networks=networks)


def _network(name: str, like: Network, items: Items) -> Network:
    names = [field.name for field in dataclasses.fields(like)]
    fields = {field: items.get(f"{name}.{field}", getattr(like, field)) for field in names}
    fields[AVERAGES] = {key: items.get(average(name, key), tree) for key, tree in like.averages.items()}
    return dataclasses.replace(like, **fields)


def networks(names: Iterable[str]) -> list[str]:
    """The networks that items of these names belong to."""
    return sorted({name.partition(".")[0] for name in names if "." in name})


def shapes(folder: pathlib.Path) -> Any:
    """Shapes of a saved tree.

    Raises:
        ValueError: nothing is saved there.
    """
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(tuple(leaf.shape), leaf.dtype), _saved(folder))


def as_saved(folder: pathlib.Path, like: Any) -> Any:
    """Shapes of `like` in the types that a tree was saved in, by path; half precision is not widened."""
    there = {path: leaf.dtype for path, leaf in jax.tree_util.tree_leaves_with_path(shapes(folder))}

    def one(path: Any, leaf: Any) -> jax.ShapeDtypeStruct:
        dtype = there.get(path, leaf.dtype)
        return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=getattr(leaf, "sharding", None))

    return jax.tree_util.tree_map_with_path(one, like)


def differences(folder: pathlib.Path, like: Any) -> str:
    """How a saved tree differs from `like`, in words; "" if it does not."""
    there = {leaf.name: tuple(leaf.shape) for leaf in jax.tree.leaves(_saved(folder)) if hasattr(leaf, "shape")}
    leaves = jax.tree_util.tree_leaves_with_path(like)
    here = {jax.tree_util.keystr(path, simple=True, separator="."): tuple(leaf.shape) for path, leaf in leaves}
    found = [f"{name} that does not exist here" for name in there if name not in here]
    found += [f"no {name}" for name in here if name not in there]
    found += [
        f"{name} of shape {there[name]}, not {shape}" for name, shape in here.items() if there.get(name, shape) != shape
    ]
    more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
    return ", ".join(found[:NAMED]) + more


def _saved(folder: pathlib.Path) -> Any:
    """What Orbax knows of a saved tree without its values; a ValueError where nothing is saved."""
    arrays = folder / checksums.ARRAYS
    return _read(folder, arrays.stat().st_mtime_ns if arrays.is_file() else 0)


@functools.lru_cache(maxsize=8)  # a run that is opened asks three times, and each takes a seventh of a second
def _read(folder: pathlib.Path, written: int) -> Any:
    del written
    with ocp.StandardCheckpointer() as reader:
        saved = reader.metadata(folder).item_metadata
    if saved is None:
        raise ValueError(f"{str(folder)!r} holds no tree")
    return saved.tree


def placed(leaf: Any) -> jax.ShapeDtypeStruct:
    """A leaf's shape with the place where it is read to."""
    # Without a placement of ours Orbax wants the device of the saver, and a run from a GPU would not open on a CPU.
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
