"""One table of what a network may predict, and how each follows from the others.

With x = alpha x0 + sigma eps, any one of the rows below determines image and noise:

    name       what it is                 source
    x0         the image                  DALL-E 2, EDM's denoiser
    eps        the noise                  Ho et al. 2020, Eq. 14
    v          alpha eps - sigma x0       Salimans & Ho 2022, Appendix D
    velocity   alpha' x0 + sigma' eps     dx/dt along a path; eps - x0 for rectified flow (Liu et al. 2022)
    score      -eps / sigma               gradient of log p(x); Song et al. 2021
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Path(NamedTuple):
    """alpha and sigma at a time, and their derivatives by it; broadcast against images."""

    alpha: jax.Array
    sigma: jax.Array
    alpha_rate: jax.Array
    sigma_rate: jax.Array


class Kind(NamedTuple):
    """A row of the table: from both ends to the quantity, and from the quantity and x to both ends."""

    combine: Callable[[Path, jax.Array, jax.Array], jax.Array]
    separate: Callable[[Path, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


def _x0(p: Path, z: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return z, (x - p.alpha * z) / p.sigma


def _eps(p: Path, z: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return (x - p.sigma * z) / p.alpha, z


def _v(p: Path, z: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    square = p.alpha**2 + p.sigma**2
    return (p.alpha * x - p.sigma * z) / square, (p.sigma * x + p.alpha * z) / square


def _velocity(p: Path, z: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    wronskian = p.alpha * p.sigma_rate - p.sigma * p.alpha_rate
    return (p.sigma_rate * x - p.sigma * z) / wronskian, (p.alpha * z - p.alpha_rate * x) / wronskian


TABLE = {
    "x0": Kind(lambda p, x0, eps: x0, _x0),
    "eps": Kind(lambda p, x0, eps: eps, _eps),
    "v": Kind(lambda p, x0, eps: p.alpha * eps - p.sigma * x0, _v),
    "velocity": Kind(lambda p, x0, eps: p.alpha_rate * x0 + p.sigma_rate * eps, _velocity),
    "score": Kind(lambda p, x0, eps: -eps / p.sigma, lambda p, z, x: _eps(p, -p.sigma * z, x)),
}


def convert(source: str, target: str, path: Path, value: jax.Array, x: jax.Array) -> jax.Array:
    """`value`, which is a `source`, as a `target`; both are names of the table.

    Where alpha is 0, noise says nothing of the image, and where sigma is 0 the image says nothing of the noise: there
    the result is infinite or nan.
    """
    return TABLE[target].combine(path, *TABLE[source].separate(path, value, x))


def slope(source: str, target: str, path: Path, smallest: float = 0.0) -> jax.Array:
    """How much a `target` changes with a `source` where x stays: `convert` is affine, and this is its factor's size.

    Args:
        source, target: names of the table.
        path: at a time.
        smallest: that is divided by.
    """
    if source == target:
        return jnp.ones_like(path.alpha)

    def rate(name: str) -> jax.Array:
        # Where x stays, x0 and eps move along (sigma, -alpha), and the table is linear.
        return jnp.abs(TABLE[name].combine(path, path.sigma, -path.alpha))

    return rate(target) / jnp.maximum(rate(source), smallest)
