"""Structural similarity of images, at one scale and at several (Wang et al. 2004; Wang et al. 2003, multi-scale)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

SIDE, STD = 11, 1.5  # of the Gaussian window, in pixels
K1, K2 = 0.01, 0.03
SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # weights of the scales, the finest first
SMALLEST = 1e-6  # of what is raised to a power, whose slope is infinite at 0


def ssim(x: jax.Array, y: jax.Array, span: float = 2.0) -> jax.Array:
    """(B,) mean similarity of images x and y (B, H, W, C) over all windows and channels: 1 for equal ones.

    Args:
        x, y: float32.
        span: between black and white: 2 for [-1, 1], 255 for levels of uint8.
    """
    structure, luminance = _parts(x, y, span)
    return _mean(structure * luminance)


def ms_ssim(x: jax.Array, y: jax.Array, span: float = 2.0) -> jax.Array:
    """(B,) similarity at as many of five scales as the window fits into; arguments as of `ssim`."""
    count = max(1, min(len(SCALES), int(np.log2(max(1, min(x.shape[1:3]) / SIDE))) + 1))
    weights = np.asarray(SCALES[:count]) / sum(SCALES[:count])
    total = jnp.ones(len(x))
    for scale, weight in enumerate(weights):
        structure, luminance = _parts(x, y, span)
        last = scale == count - 1
        total *= jnp.maximum(_mean(structure * luminance if last else structure), SMALLEST) ** weight
        if not last:
            x, y = _halved(x), _halved(y)
    return total


def _parts(x: jax.Array, y: jax.Array, span: float) -> tuple[jax.Array, jax.Array]:
    """Contrast with structure, and luminance, of every window."""
    first, second = (K1 * span) ** 2, (K2 * span) ** 2
    mean_x, mean_y = _blurred(x), _blurred(y)
    variances = _blurred(x * x) - mean_x**2 + _blurred(y * y) - mean_y**2
    covariance = _blurred(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + first) / (mean_x**2 + mean_y**2 + first)
    return (2 * covariance + second) / (variances + second), luminance


def _blurred(x: jax.Array) -> jax.Array:
    """Weighted means of all windows that lie within the images, by two products with banded matrices."""
    rows, columns = (jnp.asarray(_bands(size), x.dtype) for size in x.shape[1:3])
    return jnp.einsum("ih,bhwc,jw->bijc", rows, x, columns, precision=jax.lax.Precision.HIGHEST)


def _bands(size: int) -> np.ndarray:
    """(windows, size): the Gaussian window at every place; smaller where the image is."""
    side = min(SIDE, size - 1 + size % 2)
    window = np.exp(-0.5 * ((np.arange(side) - side // 2) / STD) ** 2)
    window /= window.sum()
    return np.stack([np.pad(window, (first, size - side - first)) for first in range(size - side + 1)])


def _halved(x: jax.Array) -> jax.Array:
    batch, height, width, channels = x.shape
    even = x[:, : height // 2 * 2, : width // 2 * 2]
    return even.reshape(batch, height // 2, 2, width // 2, 2, channels).mean(axis=(2, 4))


def _mean(x: jax.Array) -> jax.Array:
    return jnp.mean(x, axis=tuple(range(1, x.ndim)))
