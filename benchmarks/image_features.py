"""What images are compared by, fixed before anything is trained: 64 numbers of an image.

Grey digits: the hidden layer of a small classifier that was trained on the real ones. Colour images: three convolutions
with random weights, averaged over the quarters of the image. Random features tell textures and shapes apart without
knowing any classes (Naeem et al. 2020, Sec. 3.3); they are a yardstick within one table, and no FID.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import digits_classifier

WIDTHS = (32, 32, 16)  # channels of the convolutions, the first two of which halve the image
LAYOUT = ("NHWC", "HWIO", "NHWC")
SEED = 0


def features(images: np.ndarray) -> np.ndarray:
    """(B, 64) of images (B, 8, 8, 1) or (B, H, W, 3), H and W multiples of 8, float32 in [-1, 1]."""
    if images.shape[-1] == 1:
        return digits_classifier.features(np.round((images + 1) * 127.5).astype(np.uint8))
    return np.asarray(_random(jnp.asarray(images)))


@functools.cache
def _kernels() -> tuple[np.ndarray, ...]:
    random, before, kernels = np.random.default_rng(SEED), 3, []
    for width in WIDTHS:
        kernels.append(random.normal(0, np.sqrt(2 / (9 * before)), (3, 3, before, width)).astype(np.float32))
        before = width
    return tuple(kernels)


@jax.jit
def _random(images: Any) -> Any:
    h = images
    for i, kernel in enumerate(_kernels()):
        stride = 2 if i < 2 else 1
        h = jax.lax.conv_general_dilated(h, jnp.asarray(kernel), (stride, stride), "SAME", dimension_numbers=LAYOUT)
        h = jax.nn.relu(h)
    batch, height, width, channels = h.shape
    return h.reshape(batch, 2, height // 2, 2, width // 2, channels).mean(axis=(2, 4)).reshape(batch, -1)
