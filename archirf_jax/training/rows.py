"""Rows of one parameter that are replaced, and all that the training keeps of them with it."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from archirf_jax.contracts import Network

ITERATE = "z"  # the sequence of parameters that a schedule-free optimizer keeps


def replaced(network: Network, path: tuple[str, ...], chosen: jax.Array, rows: jax.Array) -> Network:
    """A network with other rows of one parameter.

    Averages have the new rows at once: a mean of two vectors that have nothing in common is neither. Moments of the
    optimizer begin at 0, since they are of the gradients of other rows.

    Args:
        network: whose parameter, averages and optimizer change.
        path: of the parameter (N, D), the module's name first.
        chosen: (N,) which rows.
        rows: (N, D) what they become.
    """

    def one(place: Any, leaf: Any) -> Any:
        if tuple(getattr(entry, "key", None) for entry in place[-len(path) :]) != path:
            return leaf
        kept = place[: -len(path)]
        moment = bool(kept) and getattr(kept[-1], "name", None) != ITERATE
        return jnp.where(chosen[:, None], 0 if moment else rows, leaf).astype(leaf.dtype)

    def inside(tree: Any) -> Any:
        return jax.tree_util.tree_map_with_path(one, tree)

    averages = {name: inside(average) for name, average in network.averages.items()}
    return dataclasses.replace(network, params=inside(network.params), averages=averages, opt=inside(network.opt))
