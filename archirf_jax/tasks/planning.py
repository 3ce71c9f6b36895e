"""What a training needs, before it is begun: arithmetic, memory of a device, time, and what would make it fit."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from archirf_jax.contracts import Frozen
from archirf_jax.data.fields import shapes
from archirf_jax.errors import UserError
from archirf_jax.tasks.building import Runs, make_task
from archirf_jax.tasks.communication import Traffic, planned
from archirf_jax.tasks.footprint import Memory, MemoryPlan, frozen_shapes, held, measure
from archirf_jax.training import flops
from archirf_jax.training.devices import GIB, Device

USABLE = 0.9  # of a device's memory; the rest is the driver's, the libraries' and the gaps'
PREALLOCATED = 0.75  # of it that jax takes on a GPU by default
TRAINING = 3  # times the arithmetic of the network: once on the way there, twice on the way back
DAY = 86_400  # seconds


@dataclasses.dataclass(frozen=True)
class Plan:
    """Arithmetic, memory and time of a training.

    Attributes:
        device, devices: what it runs on.
        dtype: of its computation.
        parameters: trainable numbers.
        forward: floating-point operations of the network for one image.
        batch_size, steps: of the configuration.
        scan: whether blocks are a loop, as activations are counted; None where the network has no such choice.
        tried: ways and what they take, from what was asked for on; the last one fits, if any does.
        traffic: what a device sends in a step of the last one.
    """

    device: Device
    devices: int
    dtype: str
    parameters: int
    forward: float
    batch_size: int
    steps: int
    scan: bool | None
    tried: tuple[tuple[MemoryPlan, Memory], ...]
    traffic: Traffic | None = None

    def fits(self, memory: Memory) -> bool:
        """Whether a device has room for it."""
        return memory.total <= USABLE * self.device.memory

    def training(self, way: MemoryPlan) -> float:
        """Floating-point operations for one image in training; remat runs forward twice."""
        return self.forward * (TRAINING + way.remat)

    def seconds(self, way: MemoryPlan, utilisation: float) -> float:
        """The duration of a step on devices that reach this share of their peak."""
        peak = self.device.peak(self.dtype) * self.devices
        return self.training(way) * self.batch_size / (peak * utilisation)


def make(config: Any, device: Device, devices: int, runs: Runs | None = None, frozen: Frozen | None = None) -> Plan:
    """The plan of a configuration (data.num_classes known) on so many devices of a kind.

    Args:
        config: is left as it is.
        device: their kind.
        devices: how many there are.
        runs: frozen ones, by name.
        frozen: shapes of what a step is given of them; None = all their parameters.

    Raises:
        UserError: the configuration does not build, its batch does not divide among the devices, or they have no such
            arithmetic.
    """
    mesh = config.mesh
    if mesh.data and mesh.data * mesh.fsdp != devices:
        raise UserError("mesh.data", mesh.data, f"x fsdp={mesh.fsdp} is not {devices} devices; None takes all of them")
    dtype = config.model.get("dtype", "float32")
    device.peak(dtype)
    task: Any = make_task(config, runs)
    frozen = frozen_shapes(task) if frozen is None else frozen
    state = jax.eval_shape(task.init, jax.random.key(0), frozen)
    params = [network.params for network in state.networks.values()]
    network = dtype, _trainable(params), forward(task, state, frozen)
    plan = Plan(device, devices, *network, config.batch_size, config.steps, config.model.get("scan"), tried=())
    for way in ways(config, devices, functools.partial(_lasting, state, frozen, device)):
        if _stuck(plan, way):
            continue
        plan = dataclasses.replace(
            plan, tried=(*plan.tried, (way, measure(config, way, devices, device, runs, frozen)))
        )
        if plan.fits(plan.tried[-1][1]):
            break
    sending = planned(params, plan.tried[-1][0], devices, device, jnp.dtype(dtype).itemsize)
    return dataclasses.replace(plan, traffic=sending)


def forward(task: Any, state: Any, frozen: Frozen | None = None) -> float:
    """Floating-point operations of the losses of all of a task's networks for one image, from arrays or shapes.

    `frozen` is as of `make`.
    """
    frozen = frozen_shapes(task) if frozen is None else frozen

    def losses(state: Any, frozen: Any, batch: Any, key: jax.Array) -> list[jax.Array]:
        found = []
        for name, network in state.networks.items():
            drawn, of_network = task.losses(state, frozen, batch, key, name)
            found.append(of_network(network.params, drawn, 0)[0])
        return found

    return flops.count(losses, state, frozen, shapes(task.fields, 1), jax.eval_shape(jax.random.key, 0))


def ways(config: Any, devices: int, hopeless: Any = lambda fsdp: False) -> Iterator[MemoryPlan]:
    """The plans to try: as configured, then remat, then smaller parts, then more cutting with parts as before.

    Args:
        config: which way it is now.
        devices: how many there are.
        hopeless: whether the state alone, cut among so many devices, is too much; then smaller parts do not help.
    """
    now = MemoryPlan(config.model.get("remat", False), config.accumulation, config.mesh.fsdp)
    yield now
    # Outside a loop a CPU's compiler undoes remat: what it would save is not known here.
    remat = now.remat or {"remat", "scan"} <= set(config.model)
    if remat and not now.remat:
        yield dataclasses.replace(now, remat=True)
    fsdp = now.fsdp
    while devices % fsdp == 0:
        parts = now.accumulation * (1 if fsdp > now.fsdp else 2)
        while not hopeless(fsdp) and config.batch_size % (devices * parts) == 0:
            yield MemoryPlan(remat, parts, fsdp)
            parts *= 2
        fsdp *= 2


def _lasting(state: Any, frozen: Frozen, device: Device, fsdp: int) -> bool:
    """Whether state and gradients do not fit, however little else there is."""
    params = [network.params for network in state.networks.values()]
    return held((state, frozen), fsdp) + held(params, fsdp) > USABLE * device.memory


def _stuck(plan: Plan, way: MemoryPlan) -> bool:
    """Whether smaller parts have ceased to help: what is left does not depend on the images."""
    sizes = [memory.total for before, memory in plan.tried if (before.remat, before.fsdp) == (way.remat, way.fsdp)]
    return len(sizes) > 1 and sizes[-1] > 0.99 * sizes[-2]


def _trainable(params: Any) -> int:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return sum(leaf.size for path, leaf in leaves if not path[-1].key.startswith("frozen_"))


def lines(plan: Plan, utilisation: float) -> Iterator[str]:
    """The lines of the plan, as text."""
    way, memory = plan.tried[-1]
    seconds, device = plan.seconds(way, utilisation), plan.device
    days = plan.steps * seconds / DAY
    yield (
        f"{plan.devices} x {device.name}: {device.memory / GIB:g} GiB and {device.peak(plan.dtype) / 1e12:g} Tflops/s "
        f"in {plan.dtype} each"
    )
    yield f"network      {plan.parameters / 1e6:,.2f} M parameters"
    yield (
        f"an image     {plan.forward / 1e9:,.2f} Gflops forward ({plan.forward / 2e9:,.2f} G multiply-adds), "
        f"{plan.training(way) / 1e9:,.2f} in training"
    )
    yield f"a step       {_time(seconds)} for {plan.batch_size:,} images at {utilisation:.0%} of the peak"
    yield f"the run      {days:,.3g} days for {plan.steps:,} steps"
    yield from _memory(plan, way, memory)
    yield from _notes(plan, memory)
    if len(plan.tried) > 1 or not plan.fits(memory):
        yield from _tried(plan, utilisation)


def _memory(plan: Plan, way: MemoryPlan, memory: Memory) -> Iterator[str]:
    share = plan.batch_size // (plan.devices * way.accumulation)
    yield f"GiB a device, {share:,} images at a time{' and remat' if way.remat else ''}:"
    for name, size in dataclasses.asdict(memory).items():
        yield f"  {name:<12} {size / GIB:8.2f}"
    of = memory.total / plan.device.memory
    verdict = "fits" if plan.fits(memory) else f"does not fit: {USABLE:.0%} can be used"
    yield f"  {'together':<12} {memory.total / GIB:8.2f}  {of:.0%} of the device: {verdict}"


def _notes(plan: Plan, memory: Memory) -> Iterator[str]:
    if plan.scan is False:
        yield "these are the activations with model.scan=True; a GPU keeps about half of them without it"
    if plan.scan is None:
        yield "what remat saves of this network is not known without the device: it was not tried, and is not counted"
    if plan.devices > 1 and plan.traffic is not None:
        yield _traffic(plan.device, plan.traffic)
    if plan.device.platform == "gpu" and PREALLOCATED < memory.total / plan.device.memory <= USABLE:
        yield f"jax takes {PREALLOCATED:.0%} of a GPU by default: set XLA_PYTHON_CLIENT_MEM_FRACTION=0.95"


def _traffic(device: Device, traffic: Traffic) -> str:
    parts = {"gradients": traffic.gradients, "parameters": traffic.parameters}
    sizes = " and ".join(f"{size / GIB:.3g} GiB of {name}" for name, size in parts.items() if size)
    if traffic.seconds is None:
        return (
            f"not in the time: a device sends {sizes} a step, between machines of {device.joined} at an unknown speed"
        )
    return f"not in the time: a device sends {sizes} a step, {_time(traffic.seconds)} at the speed of the links"


def _tried(plan: Plan, utilisation: float) -> Iterator[str]:
    yield "| remat | accumulation | fsdp | GiB | step | |"
    yield "|---|---|---|---|---|---|"
    for way, memory in plan.tried:
        yield (
            f"| {way.remat} | {way.accumulation} | {way.fsdp} | {memory.total / GIB:.2f} | "
            f"{_time(plan.seconds(way, utilisation))} | {'fits' if plan.fits(memory) else 'too much'} |"
        )
    (first, _), (last, memory) = plan.tried[0], plan.tried[-1]
    if plan.fits(memory):
        new = [f"--config.{name}={value}" for name, value in last.fields().items() if first.fields()[name] != value]
        yield f"set: {' '.join(new)}"
    else:
        yield "nothing makes it fit: take more devices, larger ones, a smaller batch_size or a smaller network"


def _time(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"
