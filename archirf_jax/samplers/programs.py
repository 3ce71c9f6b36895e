"""Programs that fall apart into what depends on some of their arrays alone, and the rest (loop-invariant code motion,
Aho et al. 2006, "Compilers: Principles, Techniques, and Tools", Sec. 9.5.1).

What makes something large of something small, such as a bias that is broadcast, stays where it is: it would be kept and
read where it could be made.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
from jax.extend.core import Literal

Function = Callable[..., Sequence[Any]]  # of arrays


class Value:
    """Stands for an array of a program, as the variables of a jaxpr do.

    Attributes:
        aval: its shape and dtype.
        val: the array, where it is a constant.
    """

    def __init__(self, aval: Any, val: Any = None) -> None:
        """Another than all before."""
        self.aval, self.val = aval, val


@dataclasses.dataclass(frozen=True, eq=False)
class Operation:
    """What a program does at one place.

    Attributes:
        takes: variables, literals or values.
        gives: variables or values.
        run: arrays that it takes -> arrays that it gives.
        text: what it computes; where it is equal, equal arrays give equal ones.
        movable: False = it is done where it stands.
        grows: it makes something large of something small.
    """

    takes: Sequence[Any]
    gives: Sequence[Any]
    run: Function
    text: Callable[[], str]
    movable: bool = True
    grows: bool = False

    def apart(self, fixed: Sequence[bool]) -> tuple[list[Operation], Operation]:
        """Operations that need only what is fixed of what this one takes, and one that does the rest."""
        del fixed
        return [], self


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """Operations, in an order in which they can be done.

    Attributes:
        takes: variables or values that it is given.
        operations: what it does.
        gives: variables, literals or values that are its answer.
    """

    takes: Sequence[Any]
    operations: Sequence[Operation]
    gives: Sequence[Any]
    _parts: dict[tuple[bool, ...], tuple[Program, Program]] = dataclasses.field(default_factory=dict)

    def __call__(self, *arrays: Any) -> list[Any]:
        """Arrays that it takes -> arrays that it gives."""
        found = dict(zip(self.takes, arrays, strict=True))

        def read(values: Iterable[Any]) -> list[Any]:
            return [each.val if is_constant(each) else found[each] for each in values]

        for operation in self.operations:
            found |= zip(operation.gives, operation.run(*read(operation.takes)), strict=True)
        return read(self.gives)

    @functools.cached_property
    def jitted(self) -> Function:
        """The same, traced once for all calls."""
        return jax.jit(self.__call__)

    def apart(self, fixed: Sequence[bool]) -> tuple[Program, Program]:
        """A program that takes only what is fixed of what this one takes, and one that does the rest.

        The latter takes what this one takes, and then what the former gives.
        """
        if tuple(fixed) not in self._parts:  # equal blocks of a network fall apart once
            self._parts[tuple(fixed)] = self._apart(fixed)
        return self._parts[tuple(fixed)]

    def _apart(self, fixed: Sequence[bool]) -> tuple[Program, Program]:
        takes = [each for each, is_fixed in zip(self.takes, fixed, strict=True) if is_fixed]
        known = set(takes)
        early: list[Operation] = []
        late: list[Operation] = []
        for operation in self.operations:
            are = [is_constant(each) or each in known for each in operation.takes]
            if operation.movable and all(are):
                moved = [operation]
            else:
                moved, rest = operation.apart(are)
                late.append(rest)
            early += moved
            known.update(each for one in moved for each in one.gives)
        needed = {*_names(self.gives), *(each for operation in late for each in _names(operation.takes))}
        needed_early: set[Any] = set()
        kept: list[Operation] = []
        again: list[Operation] = []
        for operation in reversed(early):
            gives = set(operation.gives)
            if operation.grows and needed & gives:
                again.append(operation)
                needed = (needed - gives) | set(_names(operation.takes))
            if (needed | needed_early) & gives:
                kept.append(operation)
                needed_early.update(_names(operation.takes))
        held = [each for operation in reversed(kept) for each in operation.gives if each in needed]
        return Program(takes, kept[::-1], held), Program([*self.takes, *held], [*again[::-1], *late], self.gives)

    def distinct(self) -> Program:
        """The same, in which equal operations are one."""
        names: dict[Any, Any] = {}
        same: dict[tuple[Any, ...], Sequence[Any]] = {}
        operations = []
        for operation in self.operations:
            takes = renamed(operation.takes, names)
            key = operation.text(), *(repr(each.val) if isinstance(each, Literal) else id(each) for each in takes)
            if key in same:
                names |= zip(operation.gives, same[key], strict=True)
            else:
                same[key] = operation.gives
                operations.append(dataclasses.replace(operation, takes=takes))
        return Program(self.takes, operations, renamed(self.gives, names))

    def text(self) -> str:
        """What it computes, whatever its variables are called."""
        numbers = {each: i for i, each in enumerate(self.takes)}
        lines = []
        for operation in self.operations:
            takes = (each.val if isinstance(each, Literal) else numbers.get(each, id(each)) for each in operation.takes)
            lines.append(f"{operation.text()} {list(takes)}")
            numbers |= {each: len(numbers) + i for i, each in enumerate(operation.gives)}
        return "\n".join([*lines, str([numbers.get(each) for each in self.gives])])


def moved(program: Program, fixed: Sequence[bool], takes: Sequence[Any]) -> tuple[list[Operation], list[Any], Program]:
    """Of a program that is given `takes`: operations that can be done before it, what they give, and the rest."""
    early, rest = program.apart(fixed)
    names = dict(zip(program.takes, takes, strict=True))
    operations = []
    for operation in early.operations:
        own = renamed(operation.takes, names)
        names |= {each: Value(each.aval) for each in operation.gives}
        operations.append(Operation(own, renamed(operation.gives, names), operation.run, operation.text))
    return operations, renamed(early.gives, names), rest


def renamed(values: Iterable[Any], names: dict[Any, Any]) -> list[Any]:
    """The values, or others that stand for them."""
    return [each if is_constant(each) else names.get(each, each) for each in values]


def is_constant(each: Any) -> bool:
    """Whether it stands for the same array whatever a program is given."""
    return isinstance(each, Literal) or getattr(each, "val", None) is not None


def _names(values: Iterable[Any]) -> list[Any]:
    return [each for each in values if not is_constant(each)]
