"""Where arrays lie: a mesh of devices with the axes `data` and `fsdp`, and one rule that places parameters by shape.

Batches are cut along both axes. Parameters, averages and optimizer state are cut along `fsdp` (ZeRO, Rajbhandari et al.
2020, stage 3): each leaf along its longest axis that divides, whole on every device where it is small. Both axes may
have one device; then nothing is cut, and the code is the same.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from archirf_jax.errors import UserError

AXES = ("data", "fsdp")
SMALL = 2**14  # leaves of fewer numbers lie whole everywhere: fetching them would cost more than holding them
STACKED = "blocks_"  # begins the names of stacked layers, whose first axis a loop runs over
BLOCKS = ("block_", STACKED)  # those of repeated blocks


def make_mesh(data: int | None = None, fsdp: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of `data` x `fsdp` devices; data = None takes as many as there are.

    Raises:
        UserError: the devices do not divide so, or are too few.
    """
    devices = jax.devices() if devices is None else devices
    if data is None and len(devices) % fsdp:
        raise UserError("mesh.fsdp", fsdp, f"does not divide the {len(devices)} devices")
    data = len(devices) // fsdp if data is None else data
    if data * fsdp > len(devices) or (jax.process_count() > 1 and data * fsdp != len(devices)):
        wanted = f"data x fsdp = {data} x {fsdp} = {data * fsdp}"
        raise UserError("mesh.data", data, f"{wanted} of {len(devices)} devices; None takes as many as there are")
    return Mesh(np.asarray(devices[: data * fsdp]).reshape(data, fsdp), AXES)


def check_batch(mesh: Mesh, batch_size: int, accumulation: int) -> None:
    """Raise a UserError unless a step's batch divides into parts, and each part among the devices."""
    parts = mesh.size * accumulation
    if batch_size % parts:
        factors = f"devices x accumulation = {mesh.size} x {accumulation} = {parts}"
        near = max(1, round(batch_size / parts)) * parts
        raise UserError("batch_size", batch_size, f"is not a multiple of {factors}; take {near}")


def spec(path: Any, shape: Sequence[int], fsdp: int) -> PartitionSpec:
    """How a leaf of this shape, named by its tree path, is cut into `fsdp` parts."""
    axes = [axis for axis in range(int(_below(path, STACKED)), len(shape)) if shape[axis] % fsdp == 0]
    if fsdp == 1 or math.prod(shape) < SMALL or not axes:
        return PartitionSpec()
    longest = max(axes, key=lambda axis: shape[axis])
    return PartitionSpec(*[None] * longest, "fsdp")


def place(tree: Any, mesh: Mesh) -> Any:
    """The sharding of every leaf (anything with a shape) of parameters, averages or optimizer state."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(mesh, spec(path, leaf.shape, mesh.shape["fsdp"])), tree
    )


def of_batch(mesh: Mesh) -> NamedSharding:
    """The sharding of arrays whose first axis are the examples of a batch."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def whole(mesh: Mesh) -> NamedSharding:
    """The sharding of what lies whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def from_config(config: Any) -> Mesh:
    """The mesh of `config.mesh`; raises as `make_mesh`."""
    return make_mesh(config.mesh.data, config.mesh.fsdp)


def shaped(like: Any, mesh: Mesh) -> Any:
    """The shapes of parameters, averages or optimizer state, with their shardings."""
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), like, place(like, mesh)
    )


@contextlib.contextmanager
def gathering(mesh: Mesh | None) -> Iterator[None]:
    """Let `gathered` act in a function that is being traced for this mesh; without a cut nothing changes."""
    if mesh is None or mesh.shape["fsdp"] == 1:
        yield
        return
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        yield


def gathers() -> bool:
    """Whether `gathered` acts here."""
    return "fsdp" in jax.sharding.get_abstract_mesh().axis_names


def gathered(params: Any) -> Any:
    """The parameters, whole on every device, where `gathering` is; elsewhere as they are.

    Left to itself the compiler computes with a part of each layer on each device and moves activations between them,
    which are several times larger. Repeated blocks are left out: each is gathered when its turn comes.
    """
    if not gathers():
        return params
    fsdp = jax.sharding.get_abstract_mesh().shape["fsdp"]

    def one(path: Any, leaf: Any) -> Any:
        if _below(path, BLOCKS):
            return leaf
        # On the way back the other way round: the gradient is added up, and of the sum a device keeps its part.
        leaf = jax.lax.with_sharding_constraint(leaf, spec(path, leaf.shape, fsdp))
        return jax.lax.with_sharding_constraint(leaf, PartitionSpec())

    return jax.tree_util.tree_map_with_path(one, params)


def _below(path: Any, prefixes: str | tuple[str, ...]) -> bool:
    """Whether a name in the path begins so."""
    return any(str(getattr(entry, "key", "")).startswith(prefixes) for entry in path)


def fetch(array: jax.Array) -> np.ndarray:
    """The whole array on this host; with several processes all of them must call this."""
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def agreed(number: int) -> int:
    """The first process's number, on all of them."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def anywhere(here: bool) -> bool:
    """Whether it is true in any process; all of them must call this."""
    if jax.process_count() == 1:
        return here
    return bool(np.any(multihost_utils.process_allgather(np.bool_(here))))


def own_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """Which examples of a batch the devices of this process hold, in their order."""
    parts = of_batch(mesh).addressable_devices_indices_map((batch_size,)).values()
    starts = {index[0].indices(batch_size)[:2] for index in parts if index is not None}
    return np.concatenate([np.arange(*ends) for ends in sorted(starts)])
