"""The memory that a step of training takes on one device, from shapes alone: nothing is computed, no array is made.

XLA compiles the step for the CPU of this machine and reports what the program needs. A CPU stands for an accelerator,
with four differences taken care of, each measured against what XLA reports when it compiles for an H200 (docs/plan.md):

    bfloat16    a CPU keeps it as float32; float16, which is as large, is what the program is compiled with
    attention   flash attention keeps no weights between pairs of tokens; nor does `flash_like`, which takes its place
    blocks      a CPU's compiler undoes remat outside a loop, so networks that have `scan` are compiled with it
    many parts  what is cut among more devices than a CPU stands for is extrapolated
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Iterator
from typing import Any

import jax

from archirf_jax import sharding
from archirf_jax.contracts import Batch, Frozen
from archirf_jax.data.fields import shapes
from archirf_jax.errors import UserError
from archirf_jax.models import attention
from archirf_jax.tasks.building import Runs, make_task
from archirf_jax.training.devices import Device

SIMULATED = 8  # devices that this machine's CPU stands for


@dataclasses.dataclass(frozen=True)
class MemoryPlan:
    """What trades speed for memory.

    Attributes:
        remat: compute activations again.
        accumulation: parts that a batch is computed in.
        fsdp: devices among which parameters, averages and optimizer state are cut.
    """

    remat: bool
    accumulation: int
    fsdp: int

    def fields(self) -> dict[str, Any]:
        """The fields of a configuration, by dotted name."""
        return {"model.remat": self.remat, "accumulation": self.accumulation, "mesh.fsdp": self.fsdp}


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one device at the fullest moment of a step.

    Attributes:
        parameters, averages, optimizer: the state of all networks, as it is cut.
        frozen: parameters of the frozen runs, as they are cut.
        gradients: one set of every network's, as it is cut: a step takes them all before it applies any.
        activations: everything else: activations, what is computed in between, the batch.
    """

    parameters: int
    averages: int
    optimizer: int
    frozen: int
    gradients: int
    activations: int

    @property
    def total(self) -> int:
        """The sum of all parts."""
        return sum(dataclasses.astuple(self))


def simulate() -> None:
    """Let this machine's CPU stand for SIMULATED devices: before anything else of jax, later it has no effect."""
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_platforms", "cpu")
        if "host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
            jax.config.update("jax_num_cpu_devices", SIMULATED)


def measure(
    config: Any,
    plan: MemoryPlan,
    devices: int,
    device: Device | None = None,
    runs: Runs | None = None,
    frozen: Frozen | None = None,
) -> Memory:
    """What one of `devices` takes for a step of a configuration whose data.num_classes is known.

    Args:
        config: is left as it is.
        plan: what of it to change.
        devices: among which a batch is cut.
        device: their kind; without one they are CPUs, and nothing is replaced.
        runs: frozen ones, by name.
        frozen: shapes of what a step is given of them; None = all their parameters.

    Raises:
        UserError: the batch does not divide among them, or the configuration does not build.
    """
    share, rest = divmod(config.batch_size, devices * plan.accumulation)
    if rest:
        raise UserError(
            "batch_size",
            config.batch_size,
            f"must be a multiple of {devices * plan.accumulation}, {devices} devices times accumulation="
            f"{plan.accumulation}",
        )
    if devices % plan.fsdp:
        raise UserError("mesh.fsdp", plan.fsdp, f"does not divide {devices} devices")
    cut = max(n for n in range(1, len(jax.devices()) + 1) if plan.fsdp % n == 0)
    fields = plan.fields() | {"batch_size": share * plan.accumulation * cut, "mesh.data": 1, "mesh.fsdp": cut}
    with _as_on(device, changed(config, fields)) as seen:
        task = make_task(seen, runs)
        given = frozen_shapes(task) if frozen is None else frozen
        program, state = compiled(task, given, sharding.make_mesh(1, cut), seen.batch_size)
    networks = state.networks.values()
    params = [network.params for network in networks]
    return Memory(
        parameters=held(params, plan.fsdp),
        averages=held([network.averages for network in networks], plan.fsdp),
        optimizer=held([network.opt for network in networks], plan.fsdp),
        frozen=held(given, plan.fsdp),
        gradients=held(params, plan.fsdp),
        activations=max(0, taken(program) - held((state, given), cut) - held(params, cut)),
    )


def changed(config: Any, fields: dict[str, Any]) -> Any:
    """A copy of a configuration with other values of those of these fields, by dotted name, that it has."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        for name, value in fields.items():
            group, _, field = name.rpartition(".")
            inside = config[group] if group else config
            if field in inside:
                inside[field] = value
    return config


def held(tree: Any, fsdp: int) -> int:
    """Bytes of parameters, averages or optimizer state, or of shapes of them, on one of `fsdp` devices."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return sum(
        leaf.size * leaf.dtype.itemsize // (fsdp if any(sharding.spec(path, leaf.shape, fsdp)) else 1)
        for path, leaf in leaves
    )


def frozen_shapes(task: Any) -> dict[str, Any]:
    """Shapes of the parameters of a task's frozen runs, by name, in the types that they are kept in."""
    return {name: run.shapes or run.params for name, run in task.frozen.items()}


def compiled(task: Any, frozen: Any, mesh: Any, batch_size: int) -> tuple[Any, Any]:
    """(a step of so many images in all, compiled for the mesh, shapes of the state); `frozen` is as of `measure`."""
    key = jax.eval_shape(jax.random.key, 0)
    frozen = sharding.shaped(frozen, mesh)
    state = sharding.shaped(jax.eval_shape(task.init, key, frozen), mesh)
    cut: Any = functools.partial(jax.ShapeDtypeStruct, sharding=sharding.of_batch(mesh))
    batch = jax.tree.map(lambda leaf: cut(leaf.shape, leaf.dtype), shapes(task.fields, batch_size))

    def step(state: Any, frozen: Any, batch: Batch, key: jax.Array) -> Any:
        with sharding.gathering(mesh):
            after, metrics = task.step(state, frozen, batch, key)
        return jax.lax.with_sharding_constraint(after, sharding.place(after, mesh)), metrics

    return jax.jit(step, donate_argnums=0).lower(state, frozen, batch, key).compile(), state


def taken(program: Any) -> int:
    """Bytes that a compiled step takes on each device."""
    needed = program.memory_analysis()
    assert needed is not None, "XLA answers on every platform that this project runs on"
    written = needed.output_size_in_bytes - needed.alias_size_in_bytes
    return int(needed.argument_size_in_bytes + needed.temp_size_in_bytes + written)


@contextlib.contextmanager
def _as_on(device: Device | None, config: Any) -> Iterator[Any]:
    """The configuration to compile instead, and attention as a device of this kind has it, meanwhile."""
    if device is None:
        yield config
        return
    half = config.model.get("dtype") in ("bfloat16", "float16")
    seen = changed(config, {"model.scan": True} | ({"model.dtype": "float16"} if half else {}))
    with attention.using(_as_on_gpu if half and device.platform == "gpu" else attention.plain):
        yield seen


def _as_on_gpu(q: jax.Array, k: jax.Array, v: jax.Array, mask: Any = None, key_lengths: Any = None) -> jax.Array:
    if mask is not None or key_lengths is not None or not attention.flash_fits(q):
        return attention.plain(q, k, v, mask, key_lengths)
    return flash_like(q, k, v)


@jax.custom_vjp
def flash_like(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """`attention.plain` that keeps q, k and v alone and never has the weights of more than one head."""
    return _of_heads(jax.lax.map(_of_one_head, _by_heads(q, k, v)))


def _forward(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, Any]:
    return flash_like(q, k, v), (q, k, v)


def _backward(kept: Any, slope: jax.Array) -> tuple[jax.Array, ...]:
    def of_one_head(inside: Any) -> Any:
        return jax.vjp(lambda *qkv: _of_one_head(qkv), *inside[:3])[1](inside[3])

    return tuple(_of_heads(each) for each in jax.lax.map(of_one_head, _by_heads(*kept, slope)))


flash_like.defvjp(_forward, _backward)


def _of_one_head(qkv: Any) -> jax.Array:
    return attention.plain(*(each[:, :, None] for each in qkv))[:, :, 0]


def _by_heads(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    return tuple(each.transpose(2, 0, 1, 3) for each in arrays)


def _of_heads(array: jax.Array) -> jax.Array:
    return array.transpose(1, 2, 0, 3)
