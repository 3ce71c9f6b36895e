"""2-D convolution, the one place that chooses how it is computed.

XLA's CPU backend computes the gradients of a convolution up to a hundred times slower inside a loop, where training
runs, than outside. There the gradients are made of matrix products over shifted images instead.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from archirf_jax.models.linear import product

LAYOUT = ("NHWC", "HWIO", "NHWC")


def convolve(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """x (B, H, W, C) with kernel (k, k, C, D), k odd, zeros around the image -> (B, ceil(H/stride), ..., D)."""
    if kernel.shape[0] == 1 and stride == 1:
        return product(x, kernel[0, 0])
    return _on_cpu(x, kernel, stride) if jax.default_backend() == "cpu" else _native(x, kernel, stride)


class Conv(nn.Module):
    """A convolution with bias; kernel and bias are stored as `nn.Conv` stores them.

    Attributes:
        features: channels that come out.
        size: side of the kernel, odd.
        stride: pixels between two outputs.
        dtype: compute dtype.
        kernel_init: of the kernel.
    """

    features: int
    size: int = 3
    stride: int = 1
    dtype: jnp.dtype = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x (B, H, W, C) -> (B, ceil(H/stride), ceil(W/stride), features)."""
        kernel = self.param("kernel", self.kernel_init, (self.size, self.size, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        x, kernel, bias = (a.astype(self.dtype) for a in (x, kernel, bias))
        return convolve(x, kernel, self.stride) + bias


def _native(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    margin = [(kernel.shape[0] // 2,) * 2] * 2
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), margin, dimension_numbers=LAYOUT)


def _by_products(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    k, (height, width) = kernel.shape[0], x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (k // 2, k // 2), (k // 2, k // 2), (0, 0)))
    shifted = [padded[:, i : i + height : stride, j : j + width : stride] for i in range(k) for j in range(k)]
    return product(jnp.concatenate(shifted, axis=-1), kernel.reshape(-1, kernel.shape[-1]))


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _on_cpu(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    return _native(x, kernel, stride)


@_on_cpu.defjvp
def _on_cpu_jvp(stride: int, primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    (x, kernel), (dx, dkernel) = primals, tangents
    # The value by this function again: its own derivative, the second, is then taken in the same way.
    return _on_cpu(x, kernel, stride), _by_products(dx, kernel, stride) + _by_products(x, dkernel, stride)
