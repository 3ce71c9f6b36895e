"""A loop that computes what is the same at every step once, before the first.

XLA moves little out of a loop on a GPU. A network's weights would be converted to bfloat16 at every step of a sampler,
those of EDM2 normalized, and a text's keys and values made.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, jaxpr_as_fun

from archirf_jax.samplers.programs import Function, Operation, Program, Value, moved

PRODUCTS = ("dot_general", "conv_general_dilated")  # which are moved however large their answer is
GATHERING = "sharding_constraint"  # is not moved: weights that devices share would lie whole on each until the end


def scan(body: Callable[[Any, Any], tuple[Any, Any]], carry: Any, slices: Any) -> tuple[Any, Any]:
    """As `jax.lax.scan`; what is moved before the loop stays in memory until its end."""
    if getattr(jax.config, "jax_disable_jit"):  # noqa: B009 - which type checkers do not know
        return jax.lax.scan(body, carry, slices)
    first = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), slices)
    closed, shapes = jax.make_jaxpr(body, return_shape=True)(carry, first)
    jaxpr, constants = closed.jaxpr, closed.consts
    takes = [*jaxpr.constvars, *jaxpr.invars]
    program = Reader().program(ClosedJaxpr(jaxpr.replace(constvars=[], invars=takes), ()))
    early, rest = program.apart([i < len(constants) for i in range(len(takes))])
    early = early.distinct()
    held = dict(zip(early.gives, early.jitted(*constants), strict=True))  # an array that is there twice is one

    def step(carry: Any, slices: Any) -> tuple[Any, Any]:
        answer = rest(*constants, *jax.tree.leaves((carry, slices)), *(held[each] for each in early.gives))
        found: tuple[Any, Any] = jax.tree.unflatten(jax.tree.structure(shapes), answer)
        return found

    return jax.lax.scan(step, carry, slices)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Call(Operation):
    """A function in a program.

    Attributes:
        program: of the function.
        wrap: what is called, of the program.
    """

    program: Program
    wrap: Callable[[Program], Function]

    def apart(self, fixed: Sequence[bool]) -> tuple[list[Operation], Operation]:
        """As in `Operation`."""
        early, given, rest = moved(self.program, fixed, self.takes)
        if not early:
            return [], self
        return early, dataclasses.replace(self, takes=[*self.takes, *given], program=rest, run=self.wrap(rest))


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Branches(Operation):
    """One of several functions, chosen by the number that comes first.

    Attributes:
        programs: of the functions.
    """

    programs: Sequence[Program]

    def apart(self, fixed: Sequence[bool]) -> tuple[list[Operation], Operation]:
        """As in `Operation`."""
        early: list[Operation] = []
        takes, chosen = list(self.takes), []
        for program in self.programs:
            more, given, rest = moved(program, fixed[1:], self.takes[1:])
            own = slice(len(takes) - 1, len(takes) - 1 + len(given))
            chosen.append(functools.partial(_branch, rest, len(fixed) - 1, own))
            early, takes = [*early, *more], [*takes, *given]
        if not early:
            return [], self
        return early, Operation(takes, self.gives, lambda i, *arrays: jax.lax.switch(i, chosen, *arrays), self.text)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Loop(Operation):
    """A scan.

    Attributes:
        program: of its body: constants, what is carried, slices -> what is carried, slices.
        constants: how many there are.
        carried: how many arrays are carried.
        how: further arguments of `jax.lax.scan`.
    """

    program: Program
    constants: int
    carried: int
    how: dict[str, Any]

    def apart(self, fixed: Sequence[bool]) -> tuple[list[Operation], Operation]:
        """As in `Operation`: what depends on constants is computed once, and what depends on slices for all of them."""
        n, width = self.constants, len(self.takes)
        early, given, rest = moved(self.program, [*fixed[:n], *[False] * (width - n)], self.takes)
        takes = [*self.takes[:n], *given, *self.takes[n:]]
        body = Program([*rest.takes[:n], *rest.takes[width:], *rest.takes[n:width]], rest.operations, rest.gives)
        known = [*fixed[:n], *[True] * len(given), *[False] * self.carried, *fixed[n + self.carried :]]
        n += len(given)
        ahead, last = body.apart(known)
        if ahead.operations:
            used = [each for each, is_known in zip(takes, known, strict=True) if is_known]
            for_all = self._ahead(ahead, used, sum(known[:n]))
            early, takes = [*early, for_all], [*takes, *for_all.gives]
        if not early:
            return [], self
        run = functools.partial(_scan, last, n, self.carried, self.how)
        return early, dataclasses.replace(self, takes=takes, program=last, constants=n, run=run)

    def _ahead(self, program: Program, takes: Sequence[Any], constants: int) -> Operation:
        """The operation that does for all slices what a program does for one."""
        length = self.how["length"]
        shapes = (jax.ShapeDtypeStruct((length, *each.aval.shape), each.aval.dtype) for each in program.gives)
        gives = [Value(each) for each in shapes]
        run = functools.partial(_scan, program, constants, 0, {"length": length})
        return Operation(takes, gives, run, lambda: f"scan {length} {constants} {program.text()}")


class Reader:
    """Reads jaxprs as programs; a jaxpr that is read twice is the same program."""

    def __init__(self) -> None:
        """One that has read none."""
        self._programs: dict[int, tuple[Any, Program]] = {}  # with the jaxpr, whose id no other one takes then

    def program(self, closed: ClosedJaxpr) -> Program:
        """The program of a jaxpr."""
        if id(closed) not in self._programs:
            jaxpr = closed.jaxpr
            values = {var: Value(var.aval, val) for var, val in zip(jaxpr.constvars, closed.consts, strict=True)}

            def named(variables: Iterable[Any]) -> list[Any]:
                return [each if isinstance(each, Literal) else values.get(each, each) for each in variables]

            done = [self._operation(eqn, named(eqn.invars), _alone(eqn, jaxpr)) for eqn in jaxpr.eqns]
            self._programs[id(closed)] = closed, Program(jaxpr.invars, done, named(jaxpr.outvars))
        return self._programs[id(closed)][1]

    def _operation(self, eqn: JaxprEqn, takes: Sequence[Any], run: Function) -> Operation:
        name, params = eqn.primitive.name, eqn.params
        grows = name not in PRODUCTS and _bytes(eqn.outvars) > _bytes(takes)
        common: dict[str, Any] = dict(takes=takes, gives=eqn.outvars, run=run, grows=grows)
        common |= dict(text=lambda: f"{name} {params}", movable=not eqn.effects and name != GATHERING)
        if name in ("jit", "pjit"):
            program = self.program(params["jaxpr"])
            common["movable"] = all(operation.movable for operation in program.operations)
            return Call(**common, program=program, wrap=lambda program: program.jitted)
        if name in ("checkpoint", "remat2"):
            how = dict(policy=params["policy"], prevent_cse=params["prevent_cse"])
            program = self.program(ClosedJaxpr(params["jaxpr"], ()))
            return Call(**common, program=program, wrap=lambda program: jax.checkpoint(program, **how))
        if name == "cond":
            return Branches(**common, programs=[self.program(each) for each in params["branches"]])
        if name == "scan":
            how = {each: params[each] for each in ("length", "reverse", "unroll")}
            program = self.program(params["jaxpr"])
            whole, carried = _whole(takes, program.takes), _whole(eqn.outvars, program.gives)
            return Loop(**common, program=program, constants=whole - carried, carried=carried, how=how)
        return Operation(**common)


def _alone(eqn: JaxprEqn, jaxpr: Jaxpr) -> Function:
    """One equation of a jaxpr as a function of all that it takes, literals too."""
    takes = list(dict.fromkeys(each for each in eqn.invars if not isinstance(each, Literal)))
    run = jaxpr_as_fun(ClosedJaxpr(jaxpr.replace(constvars=[], invars=takes, eqns=[eqn], outvars=eqn.outvars), ()))

    def alone(*arrays: Any) -> Sequence[Any]:
        pairs = zip(eqn.invars, arrays, strict=True)
        given = {each: array for each, array in pairs if not isinstance(each, Literal)}
        found: Sequence[Any] = run(*(given[each] for each in takes))
        return found

    return alone


def _branch(program: Program, shared: int, own: slice, *arrays: Any) -> Sequence[Any]:
    return program(*arrays[:shared], *arrays[own])


def _scan(program: Program, constants: int, carried: int, how: dict[str, Any], *arrays: Any) -> Sequence[Any]:
    def body(carry: list[Any], slices: list[Any]) -> tuple[list[Any], list[Any]]:
        found = program(*arrays[:constants], *carry, *slices)
        return found[:carried], found[carried:]

    end = constants + carried
    carry, slices = jax.lax.scan(body, list(arrays[constants:end]), list(arrays[end:]), **how)
    return [*carry, *slices]


def _whole(outside: Sequence[Any], inside: Sequence[Any]) -> int:
    """How many arrays a loop does not cut into slices."""
    return sum(one.aval.shape == other.aval.shape for one, other in zip(outside, inside, strict=True))


def _bytes(values: Iterable[Any]) -> int:
    return sum(math.prod(each.aval.shape) * getattr(each.aval.dtype, "itemsize", 1) for each in values)
