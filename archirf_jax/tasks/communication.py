"""What devices send to each other in a step: counted in a compiled program, and from shapes before there is one.

Bytes are those of one device, counted in two ways:

    result   of what the operation leaves on the device
    sent     what the device sends where n devices are a ring, each step of which passes a part on to the neighbour:
             all-reduce 2 (n-1)/n of the result, all-gather and all-to-all (n-1)/n of it, reduce-scatter n-1 times it,
             the n-th part of the array, and collective-permute all of it. As many bytes are received.
"""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import jax

from archirf_jax import sharding
from archirf_jax.tasks.footprint import MemoryPlan
from archirf_jax.training.devices import Device

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
Counts = dict[str, "Count"]

COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\(")
CALLED = re.compile(r"\b(?:calls|to_apply|body|condition)=%?([\w.\-]+)")
BRANCHES = re.compile(r"\b(?:branch_computations=\{([^}]*)\}|(?:true|false)_computation=%?([\w.\-]+))")
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
ARRAY = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class Count:
    """How often a device takes part in operations of a kind, and the bytes of one device, as above."""

    operations: int = 0
    result: int = 0
    sent: float = 0.0

    def __add__(self, other: Count) -> Count:
        return Count(self.operations + other.operations, self.result + other.result, self.sent + other.sent)

    def times(self, n: int) -> Count:
        """That of n runs."""
        return Count(n * self.operations, n * self.result, n * self.sent)


def count(text: str, trips: int | None = None) -> Counts:
    """Kind -> what one device does in a run of a program; kinds that do not occur are left out.

    The body of a loop counts as often as it runs, a cond as the branch that sends most. Operations that are begun and
    awaited apart (all-reduce-start, -done) count once, and one that joins several arrays is one. An operation of groups
    of one device is none.

    Args:
        text: the optimized program, `compiled.as_text()`.
        trips: of loops that do not say how often they run, such as the loop over the steps of a dispatch.

    Raises:
        ValueError: there is such a loop, devices communicate in it, and `trips` is None.
    """
    everyone = _number(r"num_partitions=(\d+)", text) * _number(r"replica_count=(\d+)", text)
    bodies, name, entry = {"": list[str]()}, "", ""
    for line in text.splitlines():
        if found := COMPUTATION.match(line):
            name = found[2]
            bodies[name], entry = [], name if found[1] else entry
        elif line.startswith(" "):
            bodies[name].append(line)
    known: dict[str, Counts] = {}

    def of(name: str) -> Counts:
        if name not in known:
            known[name] = _sum(_of_line(line) for line in bodies.get(name, ()))
        return known[name]

    def _of_line(line: str) -> Counts:
        found = INSTRUCTION.match(line)
        if found is None:
            return {}
        kind = found[3].removesuffix("-start")
        if kind in KINDS:
            return _of_operation(kind, found[3] != kind, found[2], line, everyone)
        if kind == "conditional":
            names = [each for some in BRANCHES.findall(line) for each in re.split(r"[,\s%]+", some[0] or some[1])]
            return max(map(of, filter(None, names)), key=sent, default={})
        inside = _sum(map(of, CALLED.findall(line)))
        if kind != "while" or not inside:
            return inside
        given = TRIPS.search(line)
        n = int(given[1]) if given else trips
        if n is None:
            raise ValueError(
                f"the program does not say how often its loop {found[1]} runs, in which devices communicate"
            )
        return {kind: each.times(n) for kind, each in inside.items()}

    return of(entry)


def sent(counts: Counts) -> float:
    """Bytes that a device sends."""
    return sum(each.sent for each in counts.values())


@dataclasses.dataclass(frozen=True)
class Traffic:
    """What one device sends in a step of a training, by formula.

    Attributes:
        gradients: bytes for adding them up.
        parameters: bytes for gathering those that are cut.
        seconds: how long it takes at the speed of the links, with nothing computed meanwhile; None where the speed
            between machines is not known.
    """

    gradients: float
    parameters: float
    seconds: float | None


def planned(params: Any, way: MemoryPlan, devices: int, device: Device, itemsize: int) -> Traffic:
    """The traffic of a step, near what `count` finds in the compiled one (tests/tasks/test_communication.py).

    Each part of a batch adds up all gradients over all devices, and gathers what is cut, with remat once more.

    Args:
        params: shapes of all networks' parameters.
        way: parts, cutting and remat.
        devices: how many there are.
        device: their kind.
        itemsize: bytes of a number of the compute dtype, in which gradients are added up.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    numbers = sum(leaf.size for _, leaf in leaves)
    cut = sum(leaf.size for path, leaf in leaves if any(sharding.spec(path, leaf.shape, way.fsdp)))
    gradients = way.accumulation * 2 * (devices - 1) / devices * itemsize * numbers
    parameters = way.accumulation * (1 + way.remat) * (way.fsdp - 1) / way.fsdp * 4 * cut
    times = [(gradients, _speed(device, devices)), (parameters, _speed(device, way.fsdp))]
    known = all(speed for size, speed in times if size)
    return Traffic(gradients, parameters, sum(size / speed for size, speed in times if size) if known else None)


def _speed(device: Device, devices: int) -> float:
    """Bytes a second that each of them sends, around as many rings as a machine has ports to others."""
    return device.link if devices <= device.joined else min(device.link, device.network)


def _of_operation(kind: str, begun: bool, shape: str, line: str, everyone: int) -> Counts:
    n = _devices(line, everyone)
    arrays = [
        math.prod(map(int, filter(None, sides.split(",")))) * (int(_digits(dtype)) / 8)
        for dtype, sides in ARRAY.findall(shape)
    ]
    size = sum(arrays)
    if begun and kind == "all-gather":  # the shape is that of what is gathered and of the result
        size *= n / (n + 1)
    if kind == "collective-permute":
        size = max(arrays) if begun else size
    elif n == 1:
        return {}
    share = {"all-reduce": 2 * (n - 1) / n, "reduce-scatter": n - 1, "collective-permute": 1}.get(kind, (n - 1) / n)
    return {kind: Count(1, round(size), share * size)}


def _devices(line: str, everyone: int) -> int:
    """How many devices a group of an operation has."""
    groups = line.partition("replica_groups=")[2]
    if groups.startswith("["):  # [groups,devices]<=[...]
        return _number(r"^\[\d+,(\d+)\]", groups)
    if groups.startswith("mesh["):  # mesh['a'=2,'b'=4] {'b'}, of an axis perhaps a factor: {'b':(1)2}
        sides = dict(re.findall(r"'(\w+)'=(\d+)", groups.partition("]")[0]))
        named = re.search(r"\{('[^}]*)\}", groups)
        axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", named[1] if named else "")
        return math.prod(int(part or sides[axis]) for axis, part in axes)
    listed = re.match(r"\{\{([\d,]+)\}", groups)  # {{0,1},{2,3}}; {} = all
    return len(listed[1].split(",")) if listed else everyone


def _sum(many: Any) -> Counts:
    total: Counts = {}
    for counts in many:
        for kind, each in counts.items():
            total[kind] = total.get(kind, Count()) + each
    return total


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    return int(found[1]) if found else 1


def _digits(dtype: str) -> str:
    found = re.search(r"\d+", dtype)
    return found[0] if found else "8"  # pred
