"""Published tensors <-> parameters of our networks: names, layouts, and what to say when they do not fit.

A source (one file each) says of every parameter path which published tensor holds it and how that lies in memory. The
network's own tree then decides what is missing, what is too much and which shape is wrong, in both directions.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from archirf_jax.errors import UserError, listed

State = Mapping[str, Any]  # published name -> array, or anything with a shape
Shapes = Mapping[str, tuple[int, ...]]  # published name -> shape
Path = tuple[str, ...]  # of a parameter in our tree


class Layout(NamedTuple):
    """How a published tensor becomes ours and back; both ways take numpy and jax arrays.

    Of a parameter that is several tensors `to_ours` takes them all, and `to_theirs` gives them in the same order.
    """

    to_ours: Callable[..., Any]
    to_theirs: Callable[[Any], Any]


SAME = Layout(lambda a: a, lambda a: a)
LINEAR = Layout(lambda w: w.T, lambda w: w.T)  # (out, in) <-> (in, out)
CONV = Layout(lambda w: w.transpose(2, 3, 1, 0), lambda w: w.transpose(3, 2, 0, 1))  # OIHW <-> HWIO
POINTWISE = Layout(lambda w: w[..., 0].T, lambda w: w.T[..., None])  # 1-D convolution of size 1 <-> (in, out)


def patches(size: int) -> Layout:
    """A convolution (out, C, p, p) whose stride is its size p <-> (p*p*C, out), pixels row by row."""
    return Layout(
        lambda w: w.transpose(2, 3, 1, 0).reshape(-1, w.shape[0]),
        lambda w: w.reshape(size, size, -1, w.shape[1]).transpose(3, 2, 0, 1),
    )


def side_by_side(count: int) -> Layout:
    """So many linear layers of one input: (out, in) each, or biases (out,) <-> (in, count * out) or (count * out,)."""

    def theirs(w: Any) -> list[Any]:
        width = w.shape[-1] // count
        return [w[..., i * width : (i + 1) * width].T for i in range(count)]

    return Layout(lambda *each: np.concatenate(each).T, theirs)


# Where a parameter of ours lies: the published name or names, and the layout of the tensor or tensors.
Rename = Callable[[Path], tuple[str | tuple[str, ...], Layout]]


def published_shapes(like: Any, rename: Rename) -> dict[str, tuple[int, ...]]:
    """The tensors that parameters like `like` (arrays or shapes) are published as, by name."""
    theirs = jax.eval_shape(lambda tree: to_state(tree, rename), like)
    return {name: leaf.shape for name, leaf in theirs.items()}


def to_state(params: Any, rename: Rename) -> dict[str, Any]:
    """The published tensors of parameters, by name.

    Raises:
        UserError: a parameter that the published network does not have.
    """
    state: dict[str, Any] = {}
    for path, leaf in _leaves(params):
        try:
            names, layout = rename(path)
        except KeyError as e:
            raise UserError("model", "/".join(path), "is a parameter that the published network does not have") from e
        theirs = layout.to_theirs(leaf)
        state |= {names: theirs} if isinstance(names, str) else zip(names, theirs, strict=True)
    return state


def to_params(state: State, like: Any, rename: Rename, read: Callable[[Any], np.ndarray] = np.asarray) -> Any:
    """Parameters shaped like `like` from published tensors; nothing is converted unless everything fits.

    Args:
        state: published name -> array, or anything with a shape that `read` makes an array of.
        like: arrays or shapes.
        rename: where each parameter lies.
        read: gives the values of a tensor.

    Raises:
        UserError: lists tensors that are missing, that the network has no place for, or whose shapes are wrong; names
            one that holds nan or infinity.
    """
    check({name: np.shape(value) for name, value in state.items()}, published_shapes(like, rename))
    flat = {}
    for path, _ in _leaves(like):
        names, layout = rename(path)
        each = [_finite(name, read(state[name])) for name in ([names] if isinstance(names, str) else names)]
        flat[path] = layout.to_ours(*each)
    return jax.tree_util.tree_map_with_path(lambda path, _: flat[_names(path)], like)


def check(shapes: Shapes, expected: Shapes) -> None:
    """Raise a UserError that lists how the tensors differ from those expected, if they do."""
    missing = [name for name in expected if name not in shapes]
    extra = [name for name in shapes if name not in expected]
    wrong = [
        f"{name} {tuple(shapes[name])} instead of {tuple(shape)}"
        for name, shape in expected.items()
        if name in shapes and tuple(shapes[name]) != tuple(shape)
    ]
    found = {"missing": missing, "without place in this network": extra, "of another shape": wrong}
    parts = [f"{len(names)} {kind}: {listed(names)}" for kind, names in found.items() if names]
    if parts:
        raise UserError("checkpoint", message=f"the tensors do not fit the network; {'; '.join(parts)}")


def require(shapes: Shapes, what: str, *names: str) -> None:
    """Raise a UserError unless there are tensors of these names, which every network of the kind `what` has."""
    absent = [name for name in names if name not in shapes]
    if absent:
        raise UserError("checkpoint", message=f"holds no tensors of {what}: there is no {absent[0]}")


def count(names: Iterable[str], pattern: str) -> int:
    """1 + the largest number that the pattern's group catches at the start of a name; 0 without any.

    Raises:
        UserError: a number that no network reaches.
    """
    caught = {match[1]: name for name in names if (match := re.match(pattern, name))}
    for digits, name in caught.items():
        if len(digits) > 4:
            raise UserError("checkpoint", name, "is numbered higher than the layers of any network")
    return 1 + max(map(int, caught), default=-1)


def ratio(hidden: int, width: int) -> float:
    """The mlp_ratio at which int(width * mlp_ratio) is `hidden`."""
    found = hidden / max(width, 1)
    return found if int(width * found) == hidden else math.nextafter(found, math.inf)


def numbered(name: str, word: str) -> int | None:
    """3 for ("block_3", "block"); None for other names."""
    match = re.fullmatch(rf"{word}_(\d+)", name)
    return int(match[1]) if match else None


def _finite(name: str, value: np.ndarray) -> np.ndarray:
    if not np.isfinite(value).all():
        raise UserError("checkpoint", name, "holds nan or infinity, with which no image can be drawn")
    return value


def _leaves(tree: Any) -> list[tuple[Path, Any]]:
    return [(_names(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def _names(path: Any) -> Path:
    return tuple(part.key for part in path)
