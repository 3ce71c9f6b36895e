"""Moving averages whose width grows with the training, and any such average out of a few stored ones.

At time t the parameters of a time tau <= t weigh as tau^gamma. Such an average is named by its relative width: the
standard deviation of that profile over t. Times are in updates or in images, whichever is used throughout; only their
ratios matter. See Karras et al. 2024 (EDM2), Sec. 3 and App. C.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from archirf_jax.errors import UserError

Numbers = Sequence[float] | np.ndarray

NARROWEST = 1e-3  # relative width; names have three digits
WIDEST = 12**-0.5  # relative width where gamma is 0 and all parameters weigh the same


def check(std: float, field: str = "ema.sigma_rel") -> None:
    """Raise a UserError about `field` if no average has this relative width."""
    if not NARROWEST <= std < WIDEST:
        raise UserError(field, std, f"is not a relative width from {NARROWEST:g} to below {WIDEST:.4f}, such as 0.05")


def item(std: float) -> str:
    """Name of the part of a snapshot that holds the average of this relative width."""
    return f"ema_{std:.3f}"


def exponent(std: float) -> float:
    """gamma >= 0 of the profile whose relative width is `std`, above 0 and below WIDEST.

    std^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)) is a cubic (Sec. 3.1); its largest real root is gamma.
    """
    roots = np.roots([1.0, 7.0, 16.0 - std**-2, 12.0 - std**-2])
    return float(np.max(roots[np.abs(roots.imag) <= 1e-9 * np.abs(roots)].real))


def beta(std: float, t_next: float, t_delta: float) -> float:
    """What the average of time t_next - t_delta is multiplied with on its way to t_next, in [0, 1] (Sec. 3.1)."""
    return float((1 - t_delta / t_next) ** (exponent(std) + 1))


def decay(std: float, step: jax.Array) -> jax.Array:
    """`beta` of the update that `step` others came before, () float32 of () int32; at the first it is 0.

    So the start is forgotten, and the parameters of update i weigh just what the profile has between i - 1 and i.
    """
    return jnp.exp((exponent(std) + 1) * jnp.log1p(-1 / (step + 1)))


class Snapshot(NamedTuple):
    """A stored average: the time when it was stored, and its relative width."""

    step: int
    std: float


class Average(NamedTuple):
    """An average that was reconstructed from snapshots.

    Attributes:
        params: pytree of float32 numpy arrays.
        mismatch: see the function.
        snapshots: those that went in, in order of time.
    """

    params: Any
    mismatch: float
    snapshots: tuple[Snapshot, ...]


def coefficients(times: Numbers, stds: Numbers, time: float, std: float) -> np.ndarray:
    """Weights (n,) float64 of the averages of `times` (n,) and `stds` (n,) whose sum is that of `std` at `time`.

    Their profiles' sum comes as near to its profile, in L2, as it can; then the weights are made to sum to 1 (App. C).
    """
    cosines, wanted, lengths = _geometry(times, stds, time, std)
    # Least squares, as an average may be there twice.
    weights = np.linalg.lstsq(cosines, wanted, rcond=None)[0] / lengths
    return weights / np.sum(weights)


def mismatch(weights: np.ndarray, times: Numbers, stds: Numbers, time: float, std: float) -> float:
    """How far these `coefficients` miss the wanted profile: the L2 norm of the difference over the profile's own."""
    cosines, wanted, lengths = _geometry(times, stds, time, std)
    scaled = weights * lengths
    return float(np.sqrt(max(1 - 2 * scaled @ wanted + scaled @ cosines @ scaled, 0.0)))


def reconstruct(
    snapshots: Sequence[Snapshot], read: Callable[[Snapshot], Any], step: int, stds: Sequence[float]
) -> list[Average]:
    """The averages of relative widths `stds` after `step` updates, out of the snapshots that are not later.

    In memory are one snapshot at a time and a float64 sum for each width. Constants (leaves named `frozen_...`) are
    those of the last snapshot.

    Args:
        snapshots: what is stored, in any order.
        read: the parameters of one; where it raises a UserError that snapshot is left out with a warning.
        step: not before the first snapshot.
        stds: one or more widths, each allowed by `check`.

    Raises:
        UserError: no snapshot is left.
    """
    used = sorted(snapshot for snapshot in snapshots if snapshot.step <= step)
    while used:
        times, widths = zip(*used, strict=True)
        weights = [coefficients(times, widths, step, std) for std in stds]
        try:
            trees = _weighted_sums(used, read, weights)
        except _Unreadable as e:
            left_out = e.snapshot
            logging.warning("the %s of step %d is left out: %s", item(left_out.std), left_out.step, e.__cause__)
            used.remove(left_out)
            continue
        missed = [mismatch(each, times, widths, step, std) for each, std in zip(weights, stds, strict=True)]
        return [Average(tree, error, tuple(used)) for tree, error in zip(trees, missed, strict=True)]
    raise UserError(f"no usable snapshot up to step {step}")


class _Unreadable(Exception):
    def __init__(self, snapshot: Snapshot) -> None:
        super().__init__(snapshot)
        self.snapshot = snapshot


def _weighted_sums(
    snapshots: Sequence[Snapshot], read: Callable[[Snapshot], Any], weights: Sequence[np.ndarray]
) -> list[Any]:
    """A tree for each of `weights` (n,)."""
    sums: list[Any] = []
    tree: Any = None
    for snapshot, column in zip(snapshots, np.stack(weights, axis=1), strict=True):
        try:
            tree = jax.tree.map(np.asarray, read(snapshot))
        except UserError as e:
            raise _Unreadable(snapshot) from e
        sums = sums or [jax.tree.map(lambda leaf: np.zeros(leaf.shape), tree) for _ in weights]
        for total, weight in zip(sums, column, strict=True):
            jax.tree.map(functools.partial(_add, weight), total, tree)
    return [jax.tree_util.tree_map_with_path(_finished, total, tree) for total in sums]


def _add(weight: float, total: np.ndarray, leaf: np.ndarray) -> None:
    np.add(total, weight * leaf.astype(np.float64), out=total)


def _finished(path: Any, total: np.ndarray, last: np.ndarray) -> np.ndarray:
    return (last if path[-1].key.startswith("frozen_") else total).astype(np.float32)


def _geometry(times: Numbers, stds: Numbers, time: float, std: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Profiles in L2: cosines between each other (n, n), with the wanted one (n,), lengths over its length (n,)."""
    t = np.append(np.asarray(times, np.float64), time)
    gamma = np.asarray([exponent(each) for each in (*stds, std)])
    cosines = _cosines(t, gamma)
    lengths = (gamma + 1) / np.sqrt((2 * gamma + 1) * t)
    return cosines[:-1, :-1], cosines[:-1, -1], lengths[:-1] / lengths[-1]


def _cosines(t: np.ndarray, gamma: np.ndarray) -> np.ndarray:
    """Between profiles (gamma + 1) tau^gamma / t^(gamma + 1) on [0, t], (n, n); of ratios, so nothing overflows."""
    t, u, g, h = t[:, None], t, gamma[:, None], gamma
    overlap = (np.minimum(t, u) / np.maximum(t, u)) ** (np.where(t > u, g, h) + 0.5)
    return np.sqrt((2 * g + 1) * (2 * h + 1)) / (g + h + 1) * overlap
