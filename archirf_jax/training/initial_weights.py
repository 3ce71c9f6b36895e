"""A training that begins from the weights of another run: what fits its network by name and shape, the rest afresh."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from archirf_jax.contracts import Params, Task, TrainState
from archirf_jax.errors import listed
from archirf_jax.sharding import STACKED

Weights = dict[str, np.ndarray]  # by path from the module on, such as "model/block_0/mlp/out/kernel"; none is stacked
BLOCK = "block_"
HEADED = "network"  # where a network lies inside heads that are trained with it
POSITIONS = ("positions", "frozen_positions")  # square tables, one row a patch
OWN = ("frozen_table",)  # constants of a run's own data


class Fit(NamedTuple):
    """What a network takes of another one's parameters.

    Attributes:
        taken: the values.
        resized: tables of positions among them that had another size, in words.
        afresh: parameters that begin as in any training, in words.
        unused: parameters of the other network that have no place.
        share: of the network's numbers, how much is taken, 0 to 1.
    """

    taken: Weights
    resized: list[str]
    afresh: list[str]
    unused: list[str]
    share: float

    def __str__(self) -> str:
        """In one line."""
        said = {"resized": self.resized, "afresh": self.afresh, "not used": self.unused}
        lists = [f"{what}: {listed(names)}" for what, names in said.items() if names]
        return "; ".join([f"{len(self.taken)} tensors, {self.share:.1%} of the network's numbers", *lists])


def fit(like: Mapping[str, Params], given: Mapping[str, Params]) -> Fit:
    """What a network takes.

    Args:
        like: its parameters by module, arrays or shapes.
        given: the other network's, by module; its blocks may be stacked where these are not, or the other way round.
    """
    wanted = _blocks(like, lambda leaf, row: np.shape(leaf)[row is not None :])
    there = _blocks(given, lambda leaf, row: np.asarray(leaf if row is None else leaf[row], np.float32))
    found = Fit({}, [], [], [path for path in there if path not in wanted], 0.0)
    for path, shape in wanted.items():
        value, name = there.get(path), path.rpartition("/")[2]
        if value is None or name in OWN:
            found.afresh.append(path)
        elif value.shape == shape:
            found.taken[path] = value
        elif name in POSITIONS and _is_square(value.shape) and _is_square(shape) and value.shape[1] == shape[1]:
            found.taken[path] = resized(value, shape[0])
            found.resized.append(f"{path} from {value.shape} to {shape}")
        else:
            found.afresh.append(f"{path} {value.shape} there, {shape} here")
    total = sum(math.prod(shape) for shape in wanted.values())
    return found._replace(share=sum(value.size for value in found.taken.values()) / max(1, total))


def resized(table: np.ndarray, rows: int) -> np.ndarray:
    """A square table of positions (N, D) as one of `rows` rows, by cubic interpolation in both directions."""
    old, new = math.isqrt(len(table)), math.isqrt(rows)
    square = jnp.asarray(table).reshape(old, old, -1)
    return np.asarray(jax.image.resize(square, (new, new, square.shape[-1]), "cubic")).reshape(rows, -1)


def begin(task: Task, state: TrainState, taken: Mapping[str, Any]) -> TrainState:
    """The state before the first step, whose main network, its optimizer and averages begin with these weights."""
    name = next(iter(task.updates))
    network = state.networks[name]

    def value(path: Any, leaf: jax.Array) -> jax.Array:
        places = _places(path, leaf)
        rows = [taken.get(place, leaf if row is None else leaf[row]) for place, row in places]
        return jnp.asarray(rows[0] if places[0][1] is None else jnp.stack(rows), leaf.dtype)

    params = jax.tree_util.tree_map_with_path(value, network.params)
    fresh = task.updates[name].init(params, network.objective_state)
    return dataclasses.replace(state, networks=state.networks | {name: fresh})


def _blocks(tree: Any, of: Callable[[Any, int | None], Any]) -> dict[str, Any]:
    """{path: of(leaf, row)} of every leaf, of stacked blocks for each."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {place: of(leaf, row) for path, leaf in leaves for place, row in _places(path, leaf)}


def _places(path: Any, leaf: Any) -> list[tuple[str, int | None]]:
    """(path of the parameter, its row in the leaf): one for each block of stacked ones, else one with row None."""
    names = [str(entry.key) for entry in path]
    if names[1:2] == [HEADED]:
        del names[1]
    for i, name in enumerate(names):
        if name.startswith(STACKED):
            first = int(name.removeprefix(STACKED))
            own = [[*names[:i], f"{BLOCK}{first + row}", *names[i + 1 :]] for row in range(np.shape(leaf)[0])]
            return [("/".join(each), row) for row, each in enumerate(own)]
    return [("/".join(names), None)]


def _is_square(shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 and math.isqrt(shape[0]) ** 2 == shape[0]
