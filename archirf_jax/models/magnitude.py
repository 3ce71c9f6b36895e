"""Layers that keep the magnitude of what passes through them (Karras et al. 2024, "Analyzing and Improving the
Training Dynamics of Diffusion Models", Sec. 2.3 and App. B).

Where each input has mean square 1 and is independent of the others, so has each output. Equations are the paper's.
Images are NHWC. A weight is called `kernel`, its last axis is the output's; only its direction matters, since every
layer divides it by its length. It is drawn normal and stays float32; `dtype` is that of the computation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from archirf_jax.models import initializers
from archirf_jax.models.convolution import convolve
from archirf_jax.models.linear import product

EPS = 1e-4  # added to root mean squares
SILU_RMS = 0.596  # of silu(x) for a normal x

Gain = jax.Array | float


def normalized(x: jax.Array, axis: int | tuple[int, ...] = -1) -> jax.Array:
    """x over its root mean square along some axes, in float32."""
    x = x.astype(jnp.float32)
    # The small number is lost in any other sum; at 0 it makes the root's slope a number.
    rms = jnp.sqrt(jnp.mean(jnp.square(x), axis=axis, keepdims=True) + 1e-30)
    return x / (rms + EPS)


def unit_weight(kernel: jax.Array) -> jax.Array:
    """A weight (..., out) whose every output has numbers of mean square 1."""
    return normalized(kernel, tuple(range(kernel.ndim - 1)))


def with_unit_weights(params: Any) -> Any:
    """Parameters whose every `kernel` is its `unit_weight`: forced weight normalisation (Eq. 66)."""

    def unit(path: Any, leaf: jax.Array) -> jax.Array:
        return unit_weight(leaf) if path[-1].key == "kernel" else leaf

    return jax.tree_util.tree_map_with_path(unit, params)


def mp_silu(x: jax.Array) -> jax.Array:
    """SiLU over its root mean square (Eq. 81)."""
    return nn.silu(x) / SILU_RMS


def mp_sum(a: jax.Array, b: jax.Array, balance: float) -> jax.Array:
    """(1 - balance) a + balance b, scaled back to mean square 1 (Eq. 88); balance is 0 to 1."""
    return ((1 - balance) * a + balance * b) / np.hypot(1 - balance, balance).item()


def mp_concat(a: jax.Array, b: jax.Array, balance: float) -> jax.Array:
    """a (..., N), b (..., M) -> (..., N + M) of mean square 1 (Eq. 103).

    As a whole, b becomes balance / (1 - balance) times as long as a, whatever N and M.
    """
    n, m = a.shape[-1], b.shape[-1]
    scale = ((n + m) ** 0.5 / np.hypot(1 - balance, balance)).item()
    return jnp.concatenate([scale * (1 - balance) / n**0.5 * a, scale * balance / m**0.5 * b], axis=-1)


def halve(x: jax.Array, taps: Sequence[float] = (1, 1)) -> jax.Array:
    """Images (B, H, W, C) of even sides -> (B, H/2, W/2, C): filtered along both axes, every second pixel kept.

    Args:
        x: the images; outside they are 0.
        taps: an even number of weights, scaled to sum 1.
    """
    for axis in (1, 2):
        x = _halve_axis(x, _unit_sum(taps), axis)
    return x


def double(x: jax.Array, taps: Sequence[float] = (1, 1)) -> jax.Array:
    """Images (B, H, W, C) -> (B, 2H, 2W, C): four times the transpose of `halve`; (1, 1) repeats pixels."""
    for axis in (1, 2):
        x = _double_axis(x, 2 * _unit_sum(taps), axis)
    return x


def _unit_sum(taps: Sequence[float]) -> np.ndarray:
    return np.asarray(taps, np.float64) / np.sum(taps)


def _halve_axis(x: jax.Array, taps: np.ndarray, axis: int) -> jax.Array:
    size, margin = x.shape[axis], len(taps) // 2 - 1
    padded = jnp.pad(x, [(margin, margin) if i == axis else (0, 0) for i in range(x.ndim)])
    slices = [jax.lax.slice_in_dim(padded, k, k + size - 1, stride=2, axis=axis) for k in range(len(taps))]
    return _weighted(taps, slices)


def _double_axis(x: jax.Array, taps: np.ndarray, axis: int) -> jax.Array:
    margin, zero = len(taps) // 2 - 1, jnp.zeros((), x.dtype)

    def spread(k: int) -> jax.Array:  # pixel i comes to 2 i + k - margin
        along = (k - margin, 1 - k + margin, 1)
        return jax.lax.pad(x, zero, [along if i == axis else (0, 0, 0) for i in range(x.ndim)])

    return _weighted(taps, [spread(k) for k in range(len(taps))])


def _weighted(weights: np.ndarray, parts: Sequence[jax.Array]) -> jax.Array:
    total = float(weights[0]) * parts[0]
    for weight, part in zip(weights[1:], parts[1:], strict=True):
        total = total + float(weight) * part
    return total


class MPFourier(nn.Module):
    """Cosines of time at normal random frequencies, in random phases (Eq. 75); both are constants, but saved.

    Attributes:
        channels: how many.
        bandwidth: of the frequencies, 2 pi times as many periods a unit of time.
    """

    channels: int
    bandwidth: float = 1.0

    @nn.compact
    def __call__(self, t: jax.Array) -> jax.Array:
        """t (B,) -> (B, channels) float32."""
        frequencies = self._constant("frozen_frequencies", jax.random.normal, self.bandwidth)
        phases = self._constant("frozen_phases", jax.random.uniform, 1.0)
        return 2**0.5 * jnp.cos(t.astype(jnp.float32)[:, None] * frequencies + phases)

    def _constant(self, name: str, draw: Callable[..., jax.Array], scale: float) -> jax.Array:
        drawn = self.param(name, lambda key, shape: 2 * jnp.pi * scale * draw(key, shape), (self.channels,))
        return jax.lax.stop_gradient(drawn)


class MPDense(nn.Module):
    """A linear layer without bias along the last axis (Eq. 47); in an image it is a convolution of size 1."""

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, gain: Gain = 1.0) -> jax.Array:
        """x (..., D) -> (..., features), times a gain."""
        kernel = self.param("kernel", initializers.unit_normal, (x.shape[-1], self.features))
        return product(x.astype(self.dtype), _scaled(kernel, gain).astype(self.dtype))


class MPSplit(nn.Module):
    """`MPDense` whose features come as arrays of equal width: the first, the second, ... of every `parts` in a row."""

    features: int
    parts: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> list[jax.Array]:
        """x (..., D) -> `parts` arrays (..., features / parts)."""
        kernel = self.param("kernel", initializers.unit_normal, (x.shape[-1], self.features))
        kernel = _scaled(kernel, 1.0).astype(self.dtype)
        # Each is a product of its own: cut out of one, they would be copied, in float32 where they are normalized.
        return [product(x.astype(self.dtype), kernel[:, i :: self.parts]) for i in range(self.parts)]


class MPConv(nn.Module):
    """A convolution without bias, of odd size; outside the image is 0 (Eq. 47)."""

    features: int
    size: int = 3
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, gain: Gain = 1.0) -> jax.Array:
        """x (B, H, W, C) -> (B, H, W, features), times a gain."""
        kernel = self.param("kernel", initializers.unit_normal, (self.size, self.size, x.shape[-1], self.features))
        return convolve(x.astype(self.dtype), _scaled(kernel, gain).astype(self.dtype))


def _scaled(kernel: jax.Array, gain: Gain) -> jax.Array:
    """The weight whose outputs have the inputs' mean square, times a gain; float32."""
    fan_in = kernel.size // kernel.shape[-1]
    return unit_weight(kernel) * (gain / fan_in**0.5)
